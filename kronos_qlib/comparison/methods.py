"""Which methods there are: entries of a YAML file, so that a new row of the table is one more entry."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from kronos_qlib.comparison.rows import FLAGS
from kronos_qlib.kronos.config import check_keys

REGISTRY = Path(__file__).with_name("methods.yaml")
KINDS = ("qlib", "column", "factor", "scores", "lagged", "blend", "shuffled_scores", "shuffled_labels")
BLENDED = ("qlib", "column", "factor", "scores")
DERIVED = ("lagged", "shuffled_scores", "shuffled_labels")
FAMILIES = ("baseline", "reference", "kronos", "control")
METHOD_KEYS = (
    "title", "family", "kind", "task", "of", "parts", "column", "sign", "lag", "needs", "seeds", "budget", "not_run",
    "no_row", "variants", "stops_on_valid", "path", "seen",
)  # fmt: skip
SEED = "<SEED>"
# What the runner knows by itself; any other text in angle brackets is given by the caller.
BUILT_IN = (
    "SEED", "THREADS", "UNIVERSE", "TRAIN_START", "TRAIN_END", "VALID_START", "VALID_END", "SEGMENT_START",
    "SEGMENT_END",
)  # fmt: skip
WITH_PATH = ("factor", "scores")
OF_QLIB = ("MODEL", "DATASET", "PRED")
LIGHTGBM = "LGBModel"


@dataclass(frozen=True)
class Method:
    """One entry of the registry.

    Attributes
    ----------
    name, title : key, and what the table calls it.
    family : ``baseline`` (Qlib's learners), ``reference`` (simple rules), ``kronos``, ``control``.
    kind : ``qlib``: ``task`` has a Qlib model and dataset. ``column``: ``column`` of the reference columns, times
        ``sign``. ``factor``: the factor ``column`` of the forecast store ``path``, times ``sign``. ``scores``: those of
        the parquet file ``path``, such as a rolling run's joined prediction, made elsewhere (valid and test may be two
        files). ``lagged``: the scores of method ``of``, ``lag`` sessions late. ``blend``: the mean of the z-scores
        within each date of the methods ``parts`` (of several seeds the first); a member that one of them has no score
        for counts as its mean. ``shuffled_scores``: those dealt out at random within each date; ``shuffled_labels``:
        those judged against labels dealt out so.
    needs : modules that must be importable.
    seeds : for models that have one: run for each. Others run once, with seed 0.
    budget : CPU seconds that a run's own process may take; beyond them it is stopped and listed as not run.
    not_run : a reason; such an entry is only listed.
    no_row : why a table may have no row of it yet, such as what it takes; it can be run all the same.
    variants : how many variants were tried on valid before this one was chosen, itself included.
    stops_on_valid : whether fitting uses the valid segment's labels (early stopping): its valid figures flatter it.
    seen : for ``scores``, which nobody here has made: whether weights behind them saw dates of the segment judged;
        ``unknown`` unless who adds the entry knows.
    source : for the kinds with ``of``, that method's configuration, and for ``blend`` those of its ``parts``;
        :func:`read_methods` fills it in.
    """

    name: str
    title: str
    family: str
    kind: str = "qlib"
    task: Mapping[str, Any] = field(default_factory=dict)
    of: str = ""
    parts: tuple[str, ...] = ()
    column: str = ""
    sign: float = 1.0
    lag: int = 20
    needs: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    budget: float = 600.0
    not_run: str = ""
    no_row: str = ""
    variants: int = 1
    stops_on_valid: bool = False
    path: str = ""
    seen: str = "unknown"
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"method {self.name!r}"
        check_keys([self.kind], KINDS, f"{where}: kind")
        check_keys([self.family], FAMILIES, f"{where}: family")
        check_keys([self.seen], FLAGS, f"{where}: seen")
        if self.kind == "qlib" and not self.not_run and not {"model", "dataset"} <= set(self.task):
            raise ValueError(f"{where}: a task needs model and dataset, found {sorted(self.task)}")
        if (self.kind in WITH_PATH) != bool(self.path):
            raise ValueError(f"{where}: `path`, a file or folder, belongs to kinds {list(WITH_PATH)}, which need it")
        if self.kind in DERIVED and not self.of:
            raise ValueError(f"{where}: kind {self.kind} needs `of`, the method whose scores it takes")
        if (self.kind == "blend") != (len(self.parts) > 1):
            raise ValueError(f"{where}: `parts`, at least two methods, belong to kind blend, which needs them")
        if not self.seeds or self.variants < 1 or not self.budget > 0 or self.lag < 0:
            raise ValueError(
                f"{where}: expected at least one seed and variant, a budget above 0 and a lag of 0 or more"
            )

    @property
    def seeded(self) -> bool:
        """Whether the task has a seed to set."""
        return SEED in _texts(self.task)

    @property
    def has_gain(self) -> bool:
        """Whether its fit says what each column gained: Qlib's LightGBM (DoubleEnsemble's parts drop columns)."""
        return self.task.get("model", {}).get("class") == LIGHTGBM

    @property
    def made_of(self) -> tuple[str, ...]:
        """Methods whose scores it takes; none where it makes its own."""
        return self.parts or ((self.of,) if self.of else ())

    def placeholders(self) -> list[str]:
        """Names in angle brackets that the caller must give, sorted; seed and threads are not among them."""
        return sorted({name for text in _texts([self.task, self.path]) if (name := _placeholder(text))} - set(BUILT_IN))

    def configuration(self) -> dict[str, Any]:
        """What the scores depend on, with placeholders: the same on every machine."""
        found = {
            "kind": self.kind, "task": self.task, "of": self.of, "column": self.column, "sign": self.sign,
            "lag": self.lag if self.kind == "lagged" else 0,
        }  # fmt: skip
        # only where they say something, so that the others keep their hashes
        return found | ({"path": self.path} if self.path else {}) | ({"source": self.source} if self.source else {})

    def missing_modules(self) -> list[str]:
        """Modules of ``needs`` that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def read_methods(paths: Sequence[Path] = (REGISTRY,)) -> dict[str, Method]:
    """Read registries, later ones adding to and overriding earlier ones.

    A registry is a YAML mapping from name to entry; a top-level key that begins with a dot is a place for YAML anchors.

    Raises
    ------
    ValueError : no mapping, an unknown key (the nearest known is named), a malformed entry, ``of`` that names nobody.
    """
    methods: dict[str, Method] = {}
    for path in paths:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, Mapping):
            raise ValueError(f"{path}: found {type(content).__name__}; expected a mapping from method to entry")
        for name, entry in content.items():
            if not str(name).startswith("."):
                methods[str(name)] = _method(str(name), entry, path)
    for name, method in methods.items():
        if method.of:
            check_keys([method.of], methods, f"method {name!r}: of")
            if methods[method.of].made_of:
                raise ValueError(f"method {name!r} is of {method.of!r}, which is made of another's scores itself")
            methods[name] = replace(method, source=methods[method.of].configuration())
        if method.parts:
            check_keys(method.parts, methods, f"method {name!r}: parts")
            made = [part for part in method.parts if methods[part].kind not in BLENDED]
            if made:
                raise ValueError(f"method {name!r} blends {made[0]!r}; expected parts of kinds {list(BLENDED)}")
            if len({methods[part].kind == "scores" for part in method.parts}) > 1:
                raise ValueError(
                    f"method {name!r} blends scores made elsewhere with others, whose weights are known in other ways; "
                    "expected parts of kind scores alone, or none of them"
                )
            methods[name] = replace(method, source={part: methods[part].configuration() for part in method.parts})
    return methods


def title_of(name: str, methods: Mapping[str, Method]) -> str:
    """What the table calls a method; its name where the registry does not know it any more."""
    return methods[name].title if name in methods else name


def choose(methods: Mapping[str, Method], names: Sequence[str]) -> list[Method]:
    """Return the named methods in the registry's order, all of them without names; a source comes before its user."""
    check_keys(list(names), methods, "--methods")
    chosen = [method for method in methods.values() if not names or method.name in names]
    return sorted(chosen, key=lambda method: bool(method.made_of))


def fill(value: Any, given: Mapping[str, Any]) -> Any:
    """Replace every text ``<NAME>`` that is in ``given`` by its value, in nested mappings and lists.

    Raises
    ------
    ValueError : a placeholder that nobody gave.
    """
    if isinstance(value, Mapping):
        return {key: fill(item, given) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [fill(item, given) for item in value]
    name = _placeholder(value) if isinstance(value, str) else ""
    if not name:
        return value
    if name not in given:
        raise ValueError(f"nothing was given for <{name}>; use --set {name}=VALUE")
    return given[name]


def _method(name: str, entry: Any, path: Path) -> Method:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{path}: method {name!r} is {type(entry).__name__}; expected a mapping")
    check_keys(entry, METHOD_KEYS, f"{path}: method {name!r}")
    values = dict(entry)
    for key in ("needs", "seeds", "parts"):
        if key in values:
            values[key] = tuple(values[key])
    return Method(name=name, **({"title": name} | values))


def _placeholder(text: str) -> str:
    """Name of a placeholder, empty for any other text."""
    name = text[1:-1] if text.startswith("<") and text.endswith(">") else ""
    return name if name.isidentifier() and name not in OF_QLIB else ""


def _texts(value: Any) -> set[str]:
    if isinstance(value, Mapping):
        return set().union(*map(_texts, value.values()))
    if isinstance(value, list | tuple):
        return set().union(*map(_texts, value))
    return {value} if isinstance(value, str) else set()
