"""Words for the reversing and letter-counting skills: common English ones and invented ones."""

from __future__ import annotations

import functools
import random
import re

from gptoss_ref.chat import small_harmony

N_RANKS = 455  # rank 455 is "20", the first token of more than one digit

_COMMON = """
able about above across actor after again agent ahead air album alone along amber among anchor
angle animal answer apple april arrow artist autumn avenue baker balance balloon bamboo banana
banner barrel basket beach bear beauty bed bell berry better bird birthday biscuit blanket blue
board boat book border bottle box branch bread breeze brick bridge bright brother brown brush
bucket budget builder butter button cabin cable cactus camera camp candle candy canvas captain
car carbon card career carpet carrot castle cat cement center century chair chalk channel cheese
cherry chess chicken child church circle citrus city clay climate clock cloud coast coconut
coffee coin cold color comet compass copper coral corner cotton country cousin cradle crayon
cream cricket crystal cup curtain cycle dance danger daughter dawn day deer desert desk diamond
dinner doctor dog dollar dolphin donkey door dragon dream dress drum duck dust eagle earth easy
echo effort egg eight elbow eleven energy engine evening event ever expert fabric family farm
father feather fence festival field finger fire fish flag flame flower fog forest fork fossil
fountain fox friend frog fruit future galaxy game garden garlic gate giant ginger giraffe glass
globe glove goat gold goose grain grape grass gravity great green guitar hammer hand happy
harbor harvest hat hazel heart height helmet hello hill history hockey holiday honey horizon
horse hotel hour house hundred island ivory jacket jade jaguar jar jelly jewel journey judge
juice jungle kangaroo kernel kettle key king kitchen kite knee knight ladder lake lamp language
lantern laser laugh lava leaf lemon letter level library light lily lion little lizard lobster
logic lunch machine magic magnet mango maple marble market meadow melon memory mercury message
metal middle milk mill minute mirror mission mississippi model moment money monkey moon morning
mother mountain mouse museum music mystery napkin nature needle nest night noodle north nose
number oasis ocean octopus office olive onion orange orbit orchid other otter oven owl oxygen
oyster paint palace panda paper parade parrot pasta peach peanut pear pearl pencil pepper piano
picnic pillow pilot pine pizza planet plate pocket poem pony potato pottery powder prairie
puzzle python quartz queen question quick quiet quilt rabbit radio rain rainbow raven reason
record ribbon rice river road robot rocket roof rose ruby sailor salad salt sand saturn school
science season secret seven shadow sheep shell ship silence silver sister sky sleep snow soap
soccer soup space spider spirit spoon spring square squirrel star station stone storm story
strawberry street student sugar summer sun sunset swan sweet table tailor teacher tempo ten
tennis theory thing thunder ticket tiger timber tomato tooth tower town train travel tree
triangle trumpet tulip tunnel turtle twelve umbrella uncle under unicorn valley vanilla velvet
victory village violet violin volcano voyage wagon wall walnut water weather whale wheat wheel
whisper white wild window winter wisdom wizard wolf wonder wood world writer yacht year yellow
yogurt young zebra zero zigzag zipper
"""
COMMON = tuple(_COMMON.split())

_VOWELS = "aeiou"
_CONSONANTS = "bcdfghjklmnpqrstvwxyz"


@functools.cache
def _pieces() -> tuple[str, ...]:
    """Return the vocabulary's tokens of two to five small letters, with or without a space."""
    tokenizer = small_harmony(N_RANKS)
    texts = {tokenizer.decode([i]).strip() for i in range(N_RANKS)}
    return tuple(sorted(t for t in texts if re.fullmatch("[a-z]{2,5}", t)))


def random_word(rng: random.Random) -> str:
    """Return a word of 2 to 11 letters.

    A common one, tokens of the vocabulary set side by side (the letters of every token have to be
    learnt), a pronounceable one or plain letters.
    """
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(COMMON)
    if kind < 0.6:
        word = rng.choice(_pieces())
        for _ in range(rng.randint(1, 2)):
            word += rng.choice((*_VOWELS, *_CONSONANTS, *_pieces()))
        return word[:9]
    length = rng.randint(3, 9)
    if kind < 0.9:
        start = rng.randrange(2)
        letters = (
            rng.choice(_VOWELS if (i + start) % 2 == 0 or rng.random() < 0.1 else _CONSONANTS)
            for i in range(length)
        )
        return "".join(letters)
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(length))
