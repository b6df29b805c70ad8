"""Provides a fixed corpus for comparing two tokenizers: many scripts, and joined pieces.

Single pieces hide most differences: tokenizers differ in the order of overlapping merges, and in
blanks, normalization and bytes. Joined texts show the differences.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

PIECES_PER_TEXT = 40  # pieces per joined text
MAX_TIE_TEXTS = 4096  # texts with two competing merges of equal score

# fmt: off
CORPUS_TEXTS = (
    "", " ", "\n", "\n\n", "\t", "\t x\0", "a", "Hello", "Hello  world ", " Hello", "▁", "x▁y ▁ z",
    "<|user|>\nHello\n<|assistant|>\n", "x" + " " * 40 + "y", "   three blanks   inside   ",
    "The ship sailed at 06:45 on 17 March 1987, with 1,234,567.89 tons; who'd have thought it?",
    "First line.\nSecond line,\r\nthird line.\n\n\tIndented by a tab\n    and by four blanks.\n",
    "def total(rows):\n    return sum(row['n'] for row in rows if row[\"n\"])  # π ≈ 3.14159\n",
    "for (int i = 0; i < n; ++i) { a[i] <<= 2; } // {{x}} && !y || z->w::v @ #1 $2 %3 ^4",
    "https://example.org/a/b?c=d&e=%20f#g  user@example.org  C:\\temp\\new  ~/.config/x.toml",
    "1234567 0.001 1e-5 0xFF 3/4 12:30 +49-30-1234 ١٢٣٤ १२३४ ๑๒๓ ⅷ 二〇二六",
    "L'été dernier, où êtes-vous allés ? À Besançon, chez ma sœur.",
    "Größere Füße über süße Äpfel; die Straße heißt „Weißgerberweg“.",
    "¿Dónde está el niño? ¡Mañana será otro día, señor Núñez!",
    "Zażółć gęślą jaźń; Łódź leży nad Łódką. Příliš žluťoučký kůň.",
    "Iğdır'da ışık söndü, İstanbul'da çiçek açtı. Không có gì quý hơn độc lập, tự do.",
    "Корабль вышел в море рано утром, когда ещё было темно. Їжак з'їв яблуко.",
    "Το πλοίο έφυγε νωρίς το πρωί από τον Πειραιά.",
    "غادرت السفينة الميناء قبل الفجر، وكان البحر هادئًا.", "הספינה יצאה אל הים לפני עלות השחר.",
    "जहाज़ सुबह होने से पहले समुद्र में निकल गया।", "জাহাজটি ভোরের আগে সমুদ্রে গেল।",
    "கப்பல் விடியலுக்கு முன் கடலுக்குச் சென்றது.", "เรือออกจากท่าก่อนรุ่งสางในขณะที่ทะเลสงบ",
    "ხომალდი გამთენიისას გავიდა ზღვაში.", "Նավը ծով դուրս եկավ լուսաբացին։",
    "መርከቧ ከንጋት በፊት ወደ ባሕር ወጣች።",
    "船在黎明前出海了。海上生明月,天涯共此时。上海的海上风很大。",
    "漁船は夜明け前に港を出た。カタカナ、ひらがな、漢字。",
    "배는 동이 트기 전에 바다로 나갔다.", "၁၂၃ မြန်မာ ខ្មែរ ລາວ བོད་སྐད",
    "🐋 👩\u200d👩\u200d👧\u200d👦 🇫🇷🇯🇵 👍🏽 ☕\ufe0f 𝒳𝔜 𐍈 🫠",
    "\ufb01ne \u2460 \u00b2 \u00bd \uff46\uff55\uff4c\uff4c",
    "\u210c \u2126 \u212b \u3392 \u2026 \ufdfa",
    "e\u0301 \u00e9 n\u0303 Vie\u0323\u0302t \uac00 \u1100\u1161 \u0439 \u0438\u0306 \u30ab\u3099",
    "\u00a0no-break\u2003em\u3000wide \u200bzero\u200d\u200c\ufeff",
    "\u202eright\u202c soft\u00adhyphen",
    "\ufffd \ue000 \U0010fffd \x01\x02\x7f \u0085 \u2028 \u2029", "\u9be8\U00029e3d㐀鿿 ゔ ヷ",
    "aaaaaaaaaaaaaaaaaaaaaaaa ababababab <<<<<<>>>>>> ------------ ........ !!!???",
    "  \n  \n\n   x\n \t \n",
)
# Marks composed differently by the tokenizers library, and special tokens as text.
RARE_TEXTS = (
    "\u1e9b\u0323", "\u0344", "a\u0328\u0301 a\u0301\u0328", "e\u0302\u0323",
    "\uff76\uff9e", "\ufb01\u0301",
    "<s>x</s> <unk><pad> [INST] y [/INST] <0x0A> <|im_start|>",
)
# fmt: on


def join_texts(texts: Sequence[str]) -> Iterator[str]:
    """Joins texts, 40 at a time, in their order and in a shuffled one."""
    shuffled = list(texts)
    random.Random(0).shuffle(shuffled)
    for order in (texts, shuffled):
        for start in range(0, len(order), PIECES_PER_TEXT):
            yield "".join(order[start : start + PIECES_PER_TEXT])


def tie_texts(groups: Sequence[Mapping[str, Sequence[tuple[str, str]]]]) -> Iterator[str]:
    """Yields texts with two merges of equal score that compete for one symbol.

    Args:
        groups: one mapping per score, from piece to the halves it merges from.
    """
    for halves in groups:
        rights_by_left: dict[str, list[str]] = {}
        for pairs in halves.values():
            for left, right in pairs:
                rights_by_left.setdefault(left, []).append(right)
        for pairs in halves.values():
            for left, right in pairs:
                for end in rights_by_left.get(right, ()):
                    yield left + right + end
