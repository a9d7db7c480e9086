"""An engine whose judge reads its scores out of the responses: for tests of what is made of judgements."""

from types import SimpleNamespace

from spct import CapacityError, Engine, InputError, Judgement, SamplingParams, VotingParams
from spct.config import EngineConfig
from spct.voting import judge
from spct.voting.votes import ParsedSample


class ScriptedEngine(Engine):
    """Sample i gives the response "TEXT 3 5" its number i mod 2; a response with "?" there makes that sample a parse error.

    context    characters of all responses together that fit
    refuses    numbers of responses that the template does not take
    asked      every request, in the order of asking
    """

    def __init__(self, *, context=1000, refuses=(), score_range=(1, 10), error=None):
        self.config = EngineConfig()
        self.prompt = SimpleNamespace(score_range=self._score_range)
        self.context, self.refuses, self.range, self.error, self.asked = context, refuses, score_range, error, []

    def _score_range(self, request):
        if len(request.responses) in self.refuses:
            raise InputError("template: not for so many responses")
        return self.range

    def _judge(self, request, sampling, voting, index=0):
        sampling, voting = sampling or SamplingParams(), voting or VotingParams()
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        if any("☃" in response for response in request.responses):
            raise InputError("responses[0]: no token for a character")
        if sum(map(len, request.responses)) > self.context:
            raise CapacityError("the prompt does not fit")
        samples = []
        for i in range(sampling.samples):
            marks = [response.split()[1:] for response in request.responses]
            shown = [mark[i % len(mark)] for mark in marks]
            scores = None if "?" in shown else tuple(map(int, shown))
            order = tuple(range(len(shown)))
            samples.append(ParsedSample(scores, "parse_error" if scores is None else "ok", order, "", 1))
        outcome = judge(samples, len(request.responses), voting, False)
        return Judgement(outcome.rewards, outcome.best, outcome.num_votes, outcome.stdev, outcome.samples, index=index)

    def score_batch(self, requests, *, sampling=None, voting=None):
        # Last come, first done: whoever relies on the order of the requests is found out.
        for index, request in reversed(list(enumerate(requests))):
            try:
                yield self._judge(request, sampling, voting, index)
            except (CapacityError, InputError) as error:
                nothing = (None,) * len(request.responses)
                yield Judgement(nothing, None, 0, nothing, (), index=index, error=error)

    async def score_async(self, query, *, sampling=None, voting=None):
        return self._judge(query, sampling, voting)
