"""What a generative reward model is compared with: the same base model, the same data, another form of verdict.

scalar         one number per response, read alone (Bradley-Terry)
pairwise       one number per pair shown together: how much better the first is
semi-scalar    a critique of each response alone, written by the judge, then a number (CLoud, arXiv 2408.11791)
judge          LLM-as-a-judge: principles, critique, and the place of the best response in place of scores
no-principles  the generative reward model without its line of principles; an ordinary judge, which every command takes

The forms are those of Self-Principled Critique Tuning's comparison (arXiv 2504.02495, section 4). Training and evaluation go through
transformers, but for what has to be written, which the engine writes.
"""
