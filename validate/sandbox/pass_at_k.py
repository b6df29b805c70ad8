"""pass@k: how often at least one of k completions passes, estimated from n of them."""

from __future__ import annotations

from math import prod

from camelpress.core.errors import RecipeProblem


def pass_at_k(n: int, passed: int, k: int) -> float:
    """The share of all choices of k out of n completions that hold one which passed.

    1 - C(n - passed, k) / C(n, k), as a product, in which nothing overflows. Over the draw of the
    completions its mean is the chance itself; that of 1 - (1 - passed / n)^k is less.

    Args:
        n: completions of the problem, k or more.
        passed: of them.
        k: how many one would look at.
    Raises:
        RecipeProblem: there are fewer than k completions.
    Source:
        Chen et al. 2021, arXiv:2107.03374, equation 1.
    """
    if not 1 <= k <= n:
        raise RecipeProblem(
            f"pass@{k} cannot be told from {n} completions of a problem",
            next_step=f"give a k from 1 to {n}, or sample more completions",
        )
    return 1.0 - prod(1.0 - k / each for each in range(n - passed + 1, n + 1))
