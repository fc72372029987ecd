"""All methods of explaining by name: a new one is one file, and its line here."""

from __future__ import annotations

from collections.abc import Sequence

from fgvc_cli.errors import EXIT_USAGE, FgvcError, nearest
from fgvc_cli.explain.cam import GradCam, HiResCam
from fgvc_cli.explain.method import Method
from fgvc_cli.explain.occlusion import Occlusion, OcclusionBlur
from fgvc_cli.explain.rollout import Rollout
from fgvc_cli.explain.stages import ObjectHeat, Stages

METHODS: dict[str, Method] = {
    method.name: method
    for method in (Stages(), ObjectHeat(), Rollout(), Occlusion(), OcclusionBlur(), HiResCam(), GradCam())
}


def pick_methods(names: Sequence[str], *, asked: bool = False) -> tuple[Method, ...]:
    """Methods by name, each once, in the order given; none for none.

    Args:
        asked: whether a class is asked about. Then, without a name, it is occlusion that answers: of those
            that can, it alone passes every test on both families (benchmarks/RESULTS.md, "Whether the maps
            are honest"), for about 100 times the cost of the gradients.

    Raises:
        FgvcError: an unknown name, with the nearest; a class asked of methods that answer for none.
    """
    for name in names:
        if name not in METHODS:
            near = nearest(name, METHODS)
            hint = f"Nearest: {', '.join(near)}." if near else f"Known: {', '.join(METHODS)}."
            raise FgvcError(f"--method got {name!r}, which is no method.", hint, EXIT_USAGE)
    chosen = tuple(METHODS[name] for name in dict.fromkeys(names))
    if not asked:
        return chosen
    if chosen and not any(method.asks_class for method in chosen):
        answering = " or ".join(name for name, method in METHODS.items() if method.asks_class)
        raise FgvcError(
            f"--target and --against change nothing in {', '.join(m.name for m in chosen)}.",
            f"Add --method {answering}.",
            EXIT_USAGE,
        )
    return chosen or (METHODS[Occlusion.name],)
