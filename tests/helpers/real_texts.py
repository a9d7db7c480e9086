"""Original English texts for the checks on a published model: prose, a table, code, a dialogue, some other languages."""

LIGHTHOUSE = """The keeper of the lighthouse at Marrow Point had a rule that he never broke: before he lit the lamp he wrote down one \
thing that he did not know. Some evenings it was small. He did not know why the gulls had left the western rocks, or who had painted the \
new boat blue. Some evenings it was large enough to keep him awake through the second watch. By the time the harbour board replaced him \
with a switch and a solar panel, the notebooks filled a cupboard, and the young engineer who came to take the old lens away sat down on \
the stairs and read until the light went. She had expected weather. Instead she found forty years of questions, each dated, none \
answered, and beside a few of them, in a different ink, a second date and a single word: found. She counted them on the ferry home. \
There were three hundred and eleven. The last one stood beside a question from his very first week at the station, in which he had asked \
how long a person has to look at the sea before it stops being scenery and turns into a place."""

BREAD = """Good bread forgives almost everything except haste. The flour may be old, the oven may run hot on the left, the salt may have \
been measured with a spoon that nobody trusts; if the dough has had its night in the cold, the loaf will still come out with a crust \
that sings when it cools. What happens in those hours is not mysterious, but it is slow. Enzymes cut the starch into sugars, the yeast \
eats some of the sugars and leaves the rest, acids gather, and the gluten, which was a tangle after mixing, lines up by itself. A baker \
who kneads for twenty minutes is doing by force what time does for nothing. The sensible schedule is therefore to mix late in the \
evening, fold the dough twice while the kitchen is being cleaned, and go to bed. In the morning the only decisions left are the shape \
and the moment. Press a floured finger into the side: if the dent fills at once, wait; if it stays, you have waited too long; if it \
comes back lazily, as if it had been asked a question that it would rather not answer, light the oven."""

BRIDGE = """When the town of Oster decided to rebuild its footbridge, three proposals were put before the council. The first was a steel \
arch, handsome and expensive, which would have needed painting every nine years. The second was a plain concrete slab on two piers; it \
cost half as much, but one pier would stand in the part of the river where the salmon turn. The third came from the school. Fourteen \
pupils had measured the banks, counted the walkers on four mornings, and drawn a timber truss of short beams, none longer than a small \
truck could carry, so that any single piece could be replaced in an afternoon without closing the bridge. The engineer whom the council \
asked for an opinion pointed out two errors in the sums, corrected them, and found that the corrected truss was stronger than the pupils \
had claimed. The treasurer worried about rot. The pupils had an answer to that too: a list of the eighty-six beams, numbered, with a \
date for each, and a fund of one coin per crossing on market days. The vote was nine to two. The bridge has had new beams in it every \
year since, and it is, depending on how one counts, either thirty years old or about four."""

TIDES = """There are two high tides a day on most coasts, and the usual explanation, that the moon pulls the water up beneath it, \
accounts for only one of them. The second bulge, on the far side, is harder to picture. The moon's pull weakens with distance; the near \
water is pulled more strongly than the solid earth, and the earth more strongly than the far water. Seen from the earth, which is \
falling freely towards the common centre, what remains is a stretching: the near side is drawn ahead and the far side is left behind. \
That is the tide raising force, and it falls with the cube of the distance, not with the square, which is why the small near moon beats \
the huge far sun. Real water does not follow the bulges, because it cannot run around the planet fast enough and because continents \
stand in its way. Each ocean basin sloshes with periods of its own, and the tide at a given harbour is the basin's answer to a push that \
comes a little more than twice a day. Some places answer loudly. Others, near a node of the slosh, hardly notice. A few, by the accident \
of their shape, prefer the once a day part of the push, and have a single tide."""

MEMO = """To: everyone on the night shift. From: the stockroom. Subject: labels. Last week we sent back four pallets that were exactly \
what had been ordered. Each of them carried a correct label, and each label had been read by someone who was sure of what it would say. \
This is nobody's fault in particular and everybody's habit in general, so from Monday we shall do the following. First, the reader says \
the last four digits aloud before looking at the order. Second, the person with the order answers yes or no, nothing else. Third, if the \
answer is no, both look again, and the pallet waits. It will feel silly for two days. On the third day it will feel normal, and by the \
end of the month it will have caught something, because it always does. Please write what it caught on the sheet by the door, without \
names. We are not collecting mistakes, we are collecting the places where mistakes like to happen. Shelf 12 is already a candidate: the \
codes of the two kinds of hinge differ in one digit, and the boxes are the same grey. New boxes have been ordered. They will be \
yellow."""

TABLE = """Station readings, first week of the thaw. Columns: day, air temperature at noon in degrees, depth of snow in centimetres, flow \
of the brook in litres per second, remark.
Monday     | -2.5 | 64 |  18 | clear, no wind
Tuesday    |  0.5 | 63 |  19 | fog until ten
Wednesday  |  3.0 | 58 |  31 | first meltwater on the path
Thursday   |  4.5 | 51 |  57 | brook brown in the afternoon
Friday     |  1.0 | 50 |  49 | frost before dawn
Saturday   |  6.0 | 39 | 112 | culvert at the mill half full
Sunday     |  7.5 | 25 | 171 | footpath closed
Questions: on which day did the snow shrink most, and by how much? How does the flow follow the temperature, and with what delay? If the \
culvert is full at 240 litres per second, what would you tell the miller on Sunday evening?"""

CODE = '''def merge_intervals(intervals):
    """Join intervals that touch or overlap.

    >>> merge_intervals([(5, 8), (1, 3), (2, 4), (9, 9), (8, 9)])
    [(1, 4), (5, 9)]
    """
    merged = []
    for start, end in sorted(intervals):
        if end < start:
            raise ValueError(f"expected start <= end, got {start} > {end}")
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


class Calendar:
    """Free and busy times of one room, in minutes since midnight."""

    def __init__(self, opens=8 * 60, closes=18 * 60):
        self.opens, self.closes, self.busy = opens, closes, []

    def book(self, start, end):
        if any(start < b and a < end for a, b in self.busy):
            return False
        self.busy = merge_intervals([*self.busy, (start, end)])
        return True

    def free(self):
        edges = [self.opens, *(t for pair in self.busy for t in pair), self.closes]
        return [(a, b) for a, b in zip(edges[::2], edges[1::2]) if a < b]
'''

DIALOGUE = """Ines: You said that the map was wrong. Tomas: I said that it was old. The river used to bend here, and now it doesn't. \
Ines: Then the border bends where nothing bends. Tomas: On paper, yes. Two farms have an address in a country that they can't reach \
without a boat. Ines: And who ploughs the strip? Tomas: Both. They take turns, a year each, since before my grandmother was born. The \
tax office on either side believes that the land belongs to the other, and nobody has ever found a reason to explain it to them. Ines: \
Someone will, one day. Tomas: Someone did. A surveyor came, with a drone and a very good camera, and stayed for three days in my \
mother's house. On the last evening she asked him what he was going to write. He looked at his soup for a while and said that the light \
had been bad. Ines: Had it? Tomas: It was June. The light was perfect."""

MIXED = """Une phrase en français, puis deux en allemand: Der Zug hält heute nicht in Lindau. Bitte steigen Sie in Bregenz um. \
Y una en español: el tren de las ocho llegará a las nueve. Numbers: 3.14159, 2^61 - 1 = 2305843009213693951, 1,024 KiB, 50 %. Symbols: \
<tag attr="x">&amp;</tag>, C:\\\\temp\\\\new, $PATH, #hashtag, @name, ~/notes.txt, a->b, x != y, f(x) := x**2. Greek: αβγ δεζ. \
Emoji: \U0001f30a\U0001f35e. Japanese: 潮が満ちる。 Arabic: المد والجزر."""

PASSAGES = {
    "lighthouse": LIGHTHOUSE,
    "bread": BREAD,
    "bridge": BRIDGE,
    "tides": TIDES,
    "memo": MEMO,
    "table": TABLE,
    "code": CODE,
    "dialogue": DIALOGUE,
    "mixed": MIXED,
}

QUESTIONS = [
    "What did the engineer find in the cupboard, and why did it surprise her?",
    "List the steps of the recipe in order, one per line.",
    "Summarise the three proposals in one sentence each.",
    "Explain the second tide to a ten-year-old.",
    "Rewrite the memo as three short rules.",
    "Answer the questions below the table.",
    "Find a bug in this code, or say that there is none, and explain your answer.",
    "Why did the surveyor write that the light had been bad?",
    "Translate every sentence that is not English into English.",
    "Which of these texts is about patience? Give two reasons.",
]
