"""The request whose prompt the benchmarks judge: real text, about 1,000 tokens once the judge's template is around it."""

from __future__ import annotations

QUERY = """\
Our allotment society has 46 plots, one shared tap and a shed with six sets of tools. In dry weeks everybody waters between six and \
eight in the evening, the tank behind the tap runs empty, and those who come last go home with empty cans. The committee wants a rule \
for the summer that is fair, that people will keep without being watched, and that costs less than 200 euros. Propose one, say why it \
would work, and say what could still go wrong."""

FIRST = """\
I would stop thinking about the tap and think about the tank. It holds 2,000 litres and refills in about five hours, so the society \
can draw roughly 4,000 litres on a dry day if half of it is taken before noon; now nearly all of it is taken in two hours of the \
evening. The rule: plots with odd numbers water in the morning, plots with even numbers in the evening, and the halves change places \
on the first of every month. Nobody may fill more than eight cans of ten litres on one visit.

Why it would work: 23 plots times 80 litres are 1,840 litres, which is what the tank holds, so the last one still gets water. \
The costs are one painted board at the tap, about 30 euros.

What could still go wrong: people who work early shifts can't water in the morning; let two plots swap their halves and write it on \
the board."""

SECOND = """\
The fairest solution is a booking system. Every member gets a slot of fifteen minutes per day, which they reserve in a free online \
calendar. With 46 plots and slots from six in the morning to ten at night there are 64 slots, so nobody has to wait any more, and the \
tank has time to fill up between them. Members without a smartphone can call the secretary.

It would work because people like to plan. Some members may forget to book, or may water without a booking when nobody looks; then \
the committee should remind them in a friendly way."""
