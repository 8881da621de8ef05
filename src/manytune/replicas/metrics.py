"""The metrics of a server of many replicas: those of each with its name as a label, and the front's own.

They aren't added up here: when a replica ends, its counters begin at zero again, and a sum would jump. Prometheus's
`sum without (replica) (rate(...))` is right then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from manytune.replicas.contract import Replicas, WholeAnswer

#: The front counts what clients get; replicas also count what they were asked to do in its name.
_OF_THE_FRONT = "manytune_refusals"


class FrontMetrics:
    """What the front counts.

    Attributes:
        http_errors: Answers with a status of 400 or more, by status.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.http_errors = Counter(
            _OF_THE_FRONT,
            "Requests answered with an error, by HTTP status.",
            ["status"],
            registry=self._registry,
        )

    def text(self, replicas: Replicas, answers: Sequence[WholeAnswer]) -> bytes:
        """All metrics in Prometheus' text format.

        Args:
            replicas: The replicas.
            answers: What each of them answered to `GET /metrics`.
        """
        found = CollectorRegistry()
        found.register(_OfReplicas(answers))
        found.register(_OfFront(replicas, {one.replica for one in answers}))
        return generate_latest(self._registry) + generate_latest(found)


class _OfReplicas(Collector):
    def __init__(self, answers: Sequence[WholeAnswer]) -> None:
        self._answers = answers

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for answer in self._answers:
            for family in text_string_to_metric_families(answer.body.decode()):
                if family.name == _OF_THE_FRONT:
                    continue
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {"replica": answer.replica, **sample.labels}
                    merged.add_sample(sample.name, labels, sample.value)
        yield from families.values()


class _OfFront(Collector):
    def __init__(self, replicas: Replicas, answered: Collection[str]) -> None:
        self._replicas = replicas
        self._answered = answered

    def collect(self) -> Iterator[Metric]:
        states = self._replicas.states()
        working = GaugeMetricFamily(
            "manytune_replica_up",
            "Whether a replica takes requests, and has answered this one.",
            labels=["replica"],
        )
        for name, works in states.items():
            working.add_metric([name], float(works and name in self._answered))
        yield working
        routed = CounterMetricFamily(
            "manytune_routed",
            "Requests that were sent to a replica: to the one that they belong to (first), to another because that "
            "one had more than its share or was lost (overflow), or to any.",
            labels=["replica", "choice"],
        )
        for (name, choice), count in sorted(self._replicas.routed().items()):
            routed.add_metric([name, choice], count)
        yield routed
        restarts = CounterMetricFamily(
            "manytune_replica_restarts", "How often a replica was started again.", labels=["replica"]
        )
        for name in states:
            restarts.add_metric([name], self._replicas.restarts().get(name, 0))
        yield restarts
