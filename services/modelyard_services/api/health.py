"""Is the process alive, is it ready, and its figures for Prometheus.

Invariant: `/readyz` names every reason why it isn't ready; open on loopback, behind a token beyond it.
"""

import msgspec
from litestar import Response, get
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from modelyard_services.api.service import ApiRequest, service_of

REGISTRY = CollectorRegistry()
_SEQUENCE = Gauge("modelyard_sequence", "Last log sequence folded by this process.", registry=REGISTRY)
_LAG = Gauge("modelyard_lag", "Sequences between this process and the log's end.", registry=REGISTRY)
_NODES = Gauge("modelyard_nodes", "Nodes by admission.", ["admission"], registry=REGISTRY)
_REPLICAS = Gauge("modelyard_replicas", "Living replicas.", registry=REGISTRY)
_VRAM_TOTAL = Gauge("modelyard_vram_budget_bytes", "VRAM that may be reserved, over all nodes.", registry=REGISTRY)
_VRAM_RESERVED = Gauge("modelyard_vram_reserved_bytes", "VRAM reserved, over all nodes.", registry=REGISTRY)


class Health(msgspec.Struct, frozen=True):
    status: str
    sequence: int
    lag: int
    problems: list[str]


@get("/healthz", summary="Alive?", tags=["health"])
async def healthz() -> dict[str, str]:
    """Answers as long as the process can."""
    return {"status": "alive"}


@get("/readyz", summary="Ready?", tags=["health"])
async def readyz(request: ApiRequest) -> Response[Health]:
    """200 once the folds have caught up, else 503 with every reason."""
    runtime = service_of(request).runtime
    problems = runtime.problems
    health = Health("not ready" if problems else "ready", runtime.fleet.sequence, runtime.feed.lag, problems)
    return Response(health, status_code=503 if problems else 200)


@get("/metrics", summary="Figures for Prometheus", tags=["health"], media_type="text/plain")
async def metrics(request: ApiRequest) -> Response[bytes]:
    """Figures of this process in Prometheus' text format."""
    service = service_of(request)
    nodes = list(service.fleet.nodes.values())
    _SEQUENCE.set(service.fleet.sequence)
    _LAG.set(service.runtime.feed.lag)
    for admission in ("pending", "approved", "rejected"):
        _NODES.labels(admission).set(sum(node.admission == admission for node in nodes))
    _REPLICAS.set(len(service.fleet.replicas))
    _VRAM_TOTAL.set(sum(node.budget for node in nodes))
    _VRAM_RESERVED.set(sum(node.vram_reserved for node in nodes))
    return Response(generate_latest(REGISTRY) + generate_latest(), media_type=CONTENT_TYPE_LATEST)
