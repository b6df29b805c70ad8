"""Estimates pass@k, the probability of a correct program among k completions."""

from __future__ import annotations

from math import prod

from camelpress.core.errors import RecipeProblem


def pass_at_k(n: int, passed: int, k: int) -> float:
    """Returns the unbiased estimate of pass@k from n completions of one problem.

    Computes 1 - C(n - passed, k) / C(n, k) as a product, so nothing overflows. The plug-in
    estimate 1 - (1 - passed / n)^k is biased low.

    Args:
        n: number of completions of the problem, at least k.
        passed: number of completions that pass the test.
        k: number of completions drawn without replacement.
    Returns:
        A probability in [0, 1].
    Raises:
        RecipeProblem: There are fewer than k completions.
    Source:
        Chen et al. 2021, arXiv:2107.03374, equation 1.
    """
    if not 1 <= k <= n:
        raise RecipeProblem(
            f"pass@{k} cannot be estimated from {n} completions of a problem",
            next_step=f"give a k from 1 to {n}, or sample more completions",
        )
    return 1.0 - prod(1.0 - k / divisor for divisor in range(n - passed + 1, n + 1))
