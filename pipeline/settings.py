"""Settings of every stage: typed, closed, one YAML file per dataset.

A dataset is one YAML file, in `pipeline/datasets/` or in a folder named by `SCALE_DATASETS`. It overrides the
defaults below. An unknown key is an error that names the nearest right one. In paths, `${NAME}` stands for an
environment variable; a relative path starts at the YAML file's own folder.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

DATASETS_FOLDER = Path(__file__).parent / "datasets"
PROMPTS_FOLDER = Path(__file__).parent / "prompts"
LLAMA = "meta-llama/Llama-3.2-3B-Instruct"
LLAMA_COMMIT = "0cb88a4f764b7a12671c53f0838cd831a0843b95"


class SettingsError(ValueError):
    """A settings file or override that cannot be used; the message names file, key, value and remedy."""


class Closed(BaseModel):
    """A frozen settings model in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


# ------------------------------------------------------------------------------------------------ raw data


class RawFile(Closed):
    """One input file: a local path, or a URL that is downloaded once and verified from then on."""

    path: str | None = Field(None, description="Local file; `${NAME}` is an environment variable.")
    url: str | None = Field(None, description="Address to download from when there is no local path.")
    sha256: str | None = Field(None, description="Checksum to hold the file to; the first download's is recorded.")

    @model_validator(mode="after")
    def _one_place(self) -> "RawFile":
        if (self.path is None) == (self.url is None):
            raise ValueError("give exactly one of `path` and `url`")
        return self


class AmazonSource(Closed):
    """Amazon review data, 2014 or 2018: JSON lines or the 2014 Python-literal lines, gzip or plain."""

    kind: Literal["amazon"]
    reviews: RawFile
    metadata: RawFile | None = None
    images: RawFile | None = Field(None, description="2014 features: 10 bytes of ASIN, 4096 float32, repeated.")


class YelpSource(Closed):
    """The Yelp academic dataset: JSON lines of businesses and reviews."""

    kind: Literal["yelp"]
    business: RawFile
    reviews: RawFile


class RlmrecSource(Closed):
    """A dataset folder as published with RLMRec: `{trn,val,tst}_mat.pkl`, `{usr,itm}_prf.pkl`."""

    kind: Literal["rlmrec"]
    folder: RawFile = Field(description="The folder, or the published zip archive.")
    member: str | None = Field(None, description="The dataset's folder inside the archive: its path, or the end of it.")


class TableFile(RawFile):
    """A table: Parquet, CSV, TSV or JSON lines by its ending (`.gz` allowed), with a map to our column names."""

    columns: dict[str, str] = Field(default_factory=dict, description="Our column name -> the file's column name.")


class TablesSource(Closed):
    """One's own data as plain tables."""

    kind: Literal["tables"]
    interactions: TableFile = Field(description="Columns user, item; optional rating, timestamp, split, summary, text.")
    items: TableFile | None = Field(
        None, description="Columns item; optional title, description, categories, brand, price."
    )
    item_profiles: TableFile | None = Field(None, description="Columns item, profile.")
    user_profiles: TableFile | None = Field(None, description="Columns user, profile.")
    images: TableFile | None = Field(None, description="Columns item, vector (a list of floats; Parquet only).")
    split_names: dict[str, Literal["train", "valid", "test"]] = Field(
        default={"train": "train", "trn": "train", "valid": "valid", "val": "valid", "test": "test", "tst": "test"},
        description="The file's split values -> ours.",
    )


class DemoSource(Closed):
    """Made data with planted interest subspaces, written as raw Amazon 2018 files."""

    kind: Literal["demo"]
    users: int = Field(600, ge=50)
    items: int = Field(400, ge=50)
    seed: int = 7


Source = Annotated[AmazonSource | YelpSource | RlmrecSource | TablesSource | DemoSource, Field(discriminator="kind")]


class RawSettings(Closed):
    """How raw rows are taken in."""

    max_bad_share: float = Field(0.01, ge=0, le=1, description="A larger share of malformed rows stops the run.")


# -------------------------------------------------------------------------------------------- interactions


class InteractionSettings(Closed):
    """k-core, ids and split (ALGORITHM 1)."""

    core: int = Field(5, ge=1, description="Every user and item keeps at least this many interactions.")
    min_rating: float | None = Field(None, description="Ratings below it are left out before the core filter.")
    split: Literal["random", "user_time", "global_time", "given"] = Field(
        "random",
        description="`random` draws a fifth of each user's interactions for validation and test. `user_time` holds out "
        "as many, each user's latest for test and those before for validation. `global_time` cuts all interactions at "
        "two points in time, the newest tenth for test and the tenth before for validation; users without an earlier "
        "interaction are not evaluated. `given` takes the source's own split column.",
    )
    seed: int = Field(0, description="Seed of the random split.")


# ------------------------------------------------------------------------------------- profiles, embeddings


def local_folder(name: str) -> Path | None:
    """The folder that a model's name stands for: what is a folder, or can be nothing else; None for a hub name."""
    path = Path(name).expanduser()
    return path if path.is_absolute() or name.startswith(".") or path.is_dir() else None


class ChatModelSettings(Closed):
    """The chat model and how it samples; the same for every way to reach it."""

    name: str = Field(LLAMA, description="A hub name, or the absolute path of a folder.")
    revision: str | None = Field(None, description="Commit of the hub model; the default model is pinned to one.")
    tokenizer: str | None = Field(
        None,
        description="Hub name or folder of the tokenizer that counts prompts. Default: the model's own for `vllm`; "
        "with `openai` none, prompts are counted in words.",
    )
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(512, ge=16, description="Longest answer.")
    seed: int = 0
    attempts: int = Field(4, ge=1, description="Tries per prompt before the row falls back to its metadata text.")

    @model_validator(mode="before")
    @classmethod
    def _pin_the_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("name", LLAMA) == LLAMA:
            return {"revision": LLAMA_COMMIT} | values
        return values

    @property
    def folder(self) -> Path | None:
        """Folder of a local model, None for a hub name."""
        return local_folder(self.name)


class OpenAISettings(Closed):
    """How an OpenAI-compatible server is reached, a `vllm serve` among them."""

    base_url: str = Field(
        default_factory=lambda: os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        description="Default: the environment variable OPENAI_BASE_URL, or this machine's port 8000.",
    )
    api_key_variable: str = Field("OPENAI_API_KEY", description="Environment variable that holds the key, if any.")
    concurrency: int = Field(16, ge=1, description="Requests in flight.")
    timeout_seconds: float = Field(120, gt=0)


class VLLMSettings(Closed):
    """The vLLM engine inside this process; rounding apart, answers do not depend on it."""

    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Share of the GPU's memory it may take.")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs to spread the model over.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    enforce_eager: bool = Field(False, description="Start sooner, run slower: no CUDA graphs, no compilation.")


class ProfileSettings(Closed):
    """User and item profiles (eqs. 1, 2)."""

    backend: Literal["extractive", "metadata", "given", "openai", "vllm"] = Field(
        "extractive", description="`metadata` takes the raw metadata as it is (w/o LLM)."
    )
    history: Literal["train", "all"] = Field(
        "train", description="Interactions a user's prompt may show; `all` leaks held-out pairs, to measure the leak."
    )
    item_prompt: str = Field("item.md.j2", description="Template file: absolute, or in `pipeline/prompts/`.")
    user_prompt: str = Field("user.md.j2", description="Template file: absolute, or in `pipeline/prompts/`.")
    prompt_words: int = Field(1500, ge=50, description="Longest prompt without a tokenizer; oldest history goes first.")
    prompt_tokens: int = Field(2048, ge=64, description="Longest prompt with a tokenizer, the chat template included.")
    model: ChatModelSettings = ChatModelSettings()
    openai: OpenAISettings = OpenAISettings()
    vllm: VLLMSettings = VLLMSettings()

    @property
    def tokenizer(self) -> str | None:
        """Name or folder of the tokenizer that counts prompts; None where they are counted in words."""
        return self.model.tokenizer or (self.model.name if self.backend == "vllm" else None)

    @field_validator("model")
    @classmethod
    def _pinned(cls, model: ChatModelSettings, info: ValidationInfo) -> ChatModelSettings:
        if info.data.get("backend") == "vllm" and model.folder is None and model.revision is None:
            raise ValueError(
                f"no revision for the hub model {model.name}: pin a commit of it, "
                "or write `revision: main` to take whatever is newest"
            )
        return model


class EmbeddingSettings(Closed):
    """Profile text -> unit vectors."""

    encoder: Literal["sentence-transformers", "lsa"] = "sentence-transformers"
    model: str = Field("facebook/contriever", description="sentence-transformers model: a hub name or a folder.")
    revision: str | None = Field(None, description="Hub revision to pin.")
    max_tokens: int = Field(256, ge=8, description="Longer texts are cut by the encoder.")
    batch_size: int | None = Field(
        None, ge=1, description="Texts encoded at once. Default: 8 on a CPU, 128 elsewhere; a short batch is filled up."
    )
    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, ...")
    dimensions: int = Field(
        128, ge=2, description="Size of an LSA vector (sentence-transformers models set their own)."
    )


# -------------------------------------------------------------------------------------------------- graphs


class SimilaritySettings(Closed):
    """Feature similarity graphs (eqs. 4, 5)."""

    neighbours: int = Field(5, ge=1, description="k_f: nearest neighbours kept per node.")


class SubspaceSettings(Closed):
    """Subspace-aware graphs (Algorithm 1)."""

    dictionary_size: int = Field(800, ge=1, description="k_s: candidates nearest to the target.")
    sparsity: int = Field(10, ge=1, description="k_o: rounds of OMP.")
    user_sparsity: int | None = Field(None, ge=1, description="k_o of C^U. Default: `sparsity`.")
    item_sparsity: int | None = Field(None, ge=1, description="k_o of C^I. Default: `sparsity`.")
    user_item_sparsity: int | None = Field(None, ge=1, description="k_o of C^UI. Default: `sparsity`.")


class IndexSettings(Closed):
    """How neighbours are found among many candidates, for both kinds of graph."""

    above: int = Field(
        100_000, ge=1, description="More candidates than this are searched by an index, fewer exactly; a GPU is exact."
    )
    recall: float = Field(
        0.95, gt=0, lt=1, description="Share of the true neighbours that an index is made to find, judged by a sample."
    )


class FusionSettings(Closed):
    """The semantic graph (eq. 6) and its ablations."""

    operator: Literal["union", "intersection"] = Field(
        "union", description="How C and G meet; as printed: intersection."
    )
    modality_operator: Literal["union", "intersection"] = Field(
        "union", description="How the visual and text graphs meet."
    )
    symmetric: bool = Field(False, description="Take max(G, G^T).")
    graphs: Literal["both", "subspace", "similarity"] = Field(
        "both", description="`similarity` is w/o SAG, `subspace` w/o FSG."
    )
    blocks: Literal["all", "inter", "intra"] = Field("all", description="`intra` is w/o inter, `inter` is w/o intra.")


class ResourceSettings(Closed):
    """What a stage may take of the machine; never part of a version. Results depend on `device` alone, and hardly: a
    GPU rounds similarities in another way, by about 1e-6, and searches exactly where a CPU searches an index.
    """

    memory_gb: float = Field(
        4.0, gt=0, description="10^9 bytes that the process of a graph stage may take; it works in blocks to keep it."
    )
    threads: int | None = Field(None, ge=1, description="Default: every core.")
    device: str = Field(
        "auto",
        description="Where graphs are built: `auto` takes a GPU where there is one; else `cpu`, `cuda`, `cuda:1`, ...",
    )


class ComputeSettings(Closed):
    """Where stages do their work; never part of a version. `compute: ray` is short for `compute: {kind: ray}`."""

    kind: Literal["local", "ray"] = Field("local", description="`local`: in this process; `ray`: on a Ray cluster.")
    address: str | None = Field(
        default_factory=lambda: os.environ.get("RAY_ADDRESS") or None,
        description="HOST:PORT of a Ray cluster of which this machine is a node. Default: the environment variable "
        "RAY_ADDRESS, or a cluster that is started on this machine.",
    )
    actors: int | None = Field(
        None,
        ge=1,
        description="Encoders, or vLLM engines, at a time. Default: as many as the cluster has GPUs for, else cores.",
    )

    @model_validator(mode="before")
    @classmethod
    def _by_kind(cls, values: Any) -> Any:
        return {"kind": values} if isinstance(values, str) else values


# ----------------------------------------------------------------------------------------------- a dataset


class DatasetSettings(Closed):
    """Everything the data stages need to know of one dataset."""

    title: str
    description: str = ""
    source: Source
    raw: RawSettings = RawSettings()
    interactions: InteractionSettings = InteractionSettings()
    profiles: ProfileSettings = ProfileSettings()
    embeddings: EmbeddingSettings = EmbeddingSettings()
    similarity: SimilaritySettings = SimilaritySettings()
    subspace: SubspaceSettings = SubspaceSettings()
    index: IndexSettings = IndexSettings()
    fusion: FusionSettings = FusionSettings()
    resources: ResourceSettings = ResourceSettings()
    compute: ComputeSettings = Field(default_factory=ComputeSettings)
    published: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="Published test metrics, by system: shown beside ours, never computed with."
    )


Model = TypeVar("Model", bound=BaseModel)


def dataset_files(extra: str | None = None) -> dict[str, Path]:
    """YAML file of every known dataset, by name, sorted.

    Parameters
    ----------
    extra
        More folders, separated like `PATH`. Default: the environment variable `SCALE_DATASETS`. A name found
        there hides a built-in dataset of the same name.
    """
    extra = os.environ.get("SCALE_DATASETS", "") if extra is None else extra
    folders = [DATASETS_FOLDER, *(Path(part).expanduser() for part in extra.split(os.pathsep) if part)]
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise SettingsError(f"SCALE_DATASETS names {folder}, which is not a folder")
        found |= {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return dict(sorted(found.items()))


def load_settings(path: Path, model: type[Model], overrides: Mapping[str, Any] | None = None) -> Model:
    """Read and validate one dataset's YAML.

    Parameters
    ----------
    overrides
        Dotted key -> value, applied on top of the file (`{"subspace.sparsity": 5}`).

    Raises
    ------
    SettingsError
        Names the file, each wrong key or value, and the nearest right key.
    """
    try:
        content = _from_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: expected settings as `key: value` lines, found {type(content).__name__}")
    for key, value in (overrides or {}).items():
        _set(content, key.split("."), value, f"override {key}")
    return validate(model, _resolve_paths(content, path), str(path))


def validate(model: type[Model], content: Mapping[str, Any], where: str) -> Model:
    """Validate `content`; errors say where, what, and the nearest right name."""
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        lines = [f"{where}: {_explain(model, problem)}" for problem in error.errors()]
        raise SettingsError("\n".join(lines)) from None


def parse_override(text: str) -> tuple[str, Any]:
    """`"subspace.sparsity=5"` -> `("subspace.sparsity", 5)`; the value is read as YAML."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise SettingsError(f"--set {text}: write it as KEY=VALUE, for example training.epochs=50")
    try:
        return key.strip(), _from_yaml(value)
    except ValueError as error:
        raise SettingsError(f"--set {text}: the value is not valid YAML: {error}") from error


class _Loader(yaml.SafeLoader):
    """YAML without aliases: a few lines of them unfold to more than memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            place = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "an alias (`*`) is not read; write its value out", place)
        return super().compose_node(parent, index)


def _from_yaml(text: str) -> Any:
    """What a YAML text holds; `ValueError` says why it cannot be told."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except Exception as error:  # a date, number or tag that cannot be made fails as it likes
        raise ValueError(str(error)) from error


def _set(content: dict[str, Any], keys: list[str], value: Any, where: str) -> None:
    for key in keys[:-1]:
        content = content.setdefault(key, {})
        if not isinstance(content, dict):
            raise SettingsError(f"{where}: {key} holds a value, not a group of settings")
    content[keys[-1]] = value


def _resolve_paths(content: Any, file: Path) -> Any:
    """Expand `${NAME}` in every string, and make the `path` of every raw file absolute."""
    if isinstance(content, dict):
        resolved = {key: _resolve_paths(value, file) for key, value in content.items()}
        if isinstance(resolved.get("path"), str):
            try:
                resolved["path"] = str(file.parent.resolve() / Path(resolved["path"]).expanduser())
            except RuntimeError as error:
                raise SettingsError(f"{file}: path {resolved['path']}: {error}") from error
        return resolved
    if isinstance(content, list):
        return [_resolve_paths(value, file) for value in content]
    if isinstance(content, str):
        return re.sub(r"\$\{(\w+)\}", lambda match: os.environ.get(match[1], match[0]), content)
    return content


def _explain(model: type[BaseModel], problem: Any) -> str:
    """One readable line for one pydantic error."""
    location = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _fields_at(model, problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{location}: unknown setting; {hint}"
    return f"{location or 'settings'}: {problem['msg']} (found {_shown(problem['input'])})"


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python prints no number of more than 4300 digits
        return "a number too long to show"


def _fields_at(model: type[BaseModel], location: Iterable[Any]) -> list[str]:
    """Field names of the settings model that `location` leads to."""
    candidates = [model]
    for part in location:
        following: list[type[BaseModel]] = []
        for candidate in candidates:
            field = candidate.model_fields.get(str(part))
            if field is not None:
                following += _models_in(field.annotation)
        # A discriminated union puts the chosen tag into the location: stay with the candidates of that tag.
        tagged = [c for c in candidates if "kind" in c.model_fields and part in _literals(c)]
        candidates = following or tagged or candidates
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models_in(part)]


def _literals(model: type[BaseModel]) -> tuple[Any, ...]:
    return getattr(model.model_fields["kind"].annotation, "__args__", ())
