"""Stage 1: supervised fine-tuning on packed items.

Lives here: `SftRun`, its loss and its loop. Not here: layouts (`tokens/layouts.py`), packing
(`data/packing.py`), the step (`training/step.py`).

Batch `step` is a pure function of the config, so that a run which is killed and started again
continues as if nothing had happened.
"""

import dataclasses
import functools
import pathlib
import sys

import jax
from jaxtyping import Array, Float
from tqdm import tqdm

from l2s_jax.data.arithmetic import ArithmeticDocuments
from l2s_jax.data.pipeline import Batches
from l2s_jax.data.store import read_items
from l2s_jax.model.attention import visible
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import Params, forward, head
from l2s_jax.model.lora import LoraConfig
from l2s_jax.objectives.logprobs import token_logp
from l2s_jax.objectives.sft import sft_loss
from l2s_jax.sampling.policy import Policy
from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.tokens.layouts import Example, LayoutConfig, encode_item
from l2s_jax.tokens.tokenizer import load_tokenizer
from l2s_jax.tokens.triggers import Spelling, TriggerStarts
from l2s_jax.training.adapter import (
    AdapterRecord,
    add_adapter,
    base_digest,
    claim_base,
    token_ids_of,
)
from l2s_jax.training.checkpoint import Checkpoints
from l2s_jax.training.metrics import MetricsFile
from l2s_jax.training.optim import OptimConfig, make_optimizer, schedule
from l2s_jax.training.policy import describe_policy, load_policy, teach_triggers
from l2s_jax.training.state import begin_state, fresh_params, state_shardings
from l2s_jax.training.step import Program, check_rows, compile_step, place_batch
from l2s_jax.types import Batch, Metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class CuratedItems:
    """Items that `l2s curate` wrote, in one annotation layout."""

    path: str  # the curation's workdir
    layout: LayoutConfig = LayoutConfig()
    spelling: Spelling = "added"
    starts: TriggerStarts = TriggerStarts()
    max_tokens: int | None = None  # longer examples are left out, and counted; None: none may be

    def __post_init__(self):
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(
                f"CuratedItems.max_tokens={self.max_tokens}: at least 1, or null to leave out none."
            )

    def prepare(self, policy: Policy) -> tuple[Policy, list[Example]]:
        """The policy with its triggers, and one example per item."""
        policy = teach_triggers(policy, self.spelling, self.starts)
        assert policy.tokenizer is not None and policy.triggers is not None
        items = read_items(pathlib.Path(self.path) / "items")
        examples = [
            encode_item(item, self.layout, policy.tokenizer, policy.triggers) for item in items
        ]
        return policy, self._short_enough(examples)

    def _short_enough(self, examples: list[Example]) -> list[Example]:
        """The examples that `max_tokens` admits; how many it does not is told."""
        if self.max_tokens is None:
            return examples
        kept = [example for example in examples if example.num_tokens <= self.max_tokens]
        left_out = f"{len(examples) - len(kept)} of {len(examples)} items"
        if not kept:
            shortest = min(example.num_tokens for example in examples)
            raise ValueError(
                f"data.max_tokens={self.max_tokens} leaves out {left_out}: the shortest has"
                f" {shortest} tokens. Raise it."
            )
        print(f"data.max_tokens={self.max_tokens} leaves out {left_out}", file=sys.stderr)
        return kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftRun:
    """A whole supervised run."""

    model: str | ModelConfig  # a folder or shipped name to start from, or a shape to start anew
    tokenizer: str | None = None  # with a shape; a folder brings its own
    data: CuratedItems | ArithmeticDocuments
    row_length: int = 128  # tokens of a packed row
    batch_rows: int = 16
    num_steps: int = 200
    lora: LoraConfig | None = None  # train an adapter beside the frozen model, not the model
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    remat: bool = False  # compute each block again in the backward pass: less memory, more time
    seed: int = 0
    log_every: int = 10
    save_every: int = 500

    def __post_init__(self):
        for name in ("row_length", "batch_rows", "num_steps", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"SftRun.{name}={getattr(self, name)}: must be at least 1.")
        if self.seed < 0:
            raise ValueError(f"SftRun.seed={self.seed}: 0 or more.")
        if isinstance(self.model, ModelConfig) and self.tokenizer is None:
            raise ValueError(
                "SftRun.tokenizer is missing: a model that starts anew needs the folder of one."
            )
        if not isinstance(self.model, ModelConfig) and self.tokenizer is not None:
            raise ValueError(
                f"SftRun.tokenizer={self.tokenizer!r}: the folder {self.model!r} brings its own."
                " Leave it out."
            )
        if self.lora is not None and isinstance(self.model, ModelConfig):
            raise ValueError(
                "SftRun.lora adapts a trained model, but SftRun.model is a shape to start anew."
                " Name a folder, or leave lora out."
            )
        schedule(self.optim, self.num_steps)  # refuses a warm-up that outlasts the run


def batch_logp(cfg: ModelConfig, params: Params, batch: Batch) -> Float[Array, "B T"]:
    """Log-prob of every target of a packed batch, nats."""
    mask = visible(batch.segment_ids, batch.branches)
    hidden, _ = forward(cfg, params, batch.tokens, batch.positions, mask_BTT=mask)
    return token_logp(hidden, head(params), batch.targets)


def loss_of(cfg: ModelConfig):
    """`loss(params, batch)` of stage 1 for one decoder."""

    def loss(params: Params, batch: Batch) -> tuple[Array, Metrics]:
        logp_BT = batch_logp(cfg, params, batch)
        return sft_loss(logp_BT, batch.weights, num_tokens=batch.num_tokens)

    return loss


def starting_policy(cfg: SftRun) -> Policy:
    """The policy before training, without triggers if it starts anew."""
    mesh = make_mesh(cfg.mesh)
    if not isinstance(cfg.model, ModelConfig):
        # On the run's own mesh: it need not fit on one device, and a frozen base lies there once.
        return load_policy(cfg.model, mesh=mesh)
    assert cfg.tokenizer is not None
    params = fresh_params(cfg.model, jax.random.key(cfg.seed), mesh)
    tokenizer = load_tokenizer(cfg.tokenizer)
    return Policy(model=cfg.model, params=params, tokenizer=tokenizer, triggers=None)


def run(cfg: SftRun, workdir: str | pathlib.Path) -> None:
    """Trains, or goes on training, in `workdir`; returns when the last step is on disk."""
    workdir = pathlib.Path(workdir)
    # 1. What is learned, and by whom.
    base = starting_policy(cfg)
    policy, examples = cfg.data.prepare(base)
    check_lengths(examples, policy.model)
    batches = Batches(examples, row_length=cfg.row_length, batch_rows=cfg.batch_rows, seed=cfg.seed)
    print(
        f"sft: {len(examples)} examples in {batches.num_rows} rows of {cfg.row_length} tokens,"
        f" {batches.fill:.1%} filled",
        file=sys.stderr,
    )
    # 2. One program on a mesh.
    decoder = dataclasses.replace(policy.model, remat=cfg.remat or policy.model.remat)
    num_rows = len(token_ids_of(policy.triggers)) if cfg.lora is not None else 0
    optimizer, places, step_fn = program(
        decoder, cfg.optim, cfg.num_steps, cfg.mesh, cfg.lora, num_rows
    )
    check_rows("SftRun.batch_rows", cfg.batch_rows, places)
    # 3. Resume, or begin.
    params = policy.params
    if cfg.lora is not None:
        params = add_adapter(policy, cfg.lora, jax.random.key(cfg.seed))
        claim_base(workdir, adapter_record(cfg, base))
    state = begin_state(params, optimizer, places)
    describe_policy(workdir, policy)
    with Checkpoints(workdir) as checkpoints:
        latest = checkpoints.latest()
        if latest is not None:
            state = checkpoints.restore(latest, state)
        begin = int(state.step)
        # 4. The loop.
        with MetricsFile(workdir, resume_from=begin) as metrics_file, _bar(cfg, begin) as bar:
            for step in range(begin, cfg.num_steps):
                state, metrics = step_fn(state, place_batch(batches[step], places))
                done = step + 1
                saves = done % cfg.save_every == 0 or done == cfg.num_steps
                # Before every save too: no checkpoint holds a number that is none.
                if done % cfg.log_every == 0 or saves:
                    numbers = metrics_file.write(done, metrics)
                    bar.set_postfix(loss=f"{numbers['loss']:.4f}")
                if saves:
                    checkpoints.save(state)
                bar.update()


@functools.lru_cache(maxsize=4)
def program(
    model: ModelConfig,
    optim: OptimConfig,
    num_steps: int,
    mesh: MeshConfig,
    lora: LoraConfig | None,
    num_rows: int,
) -> Program:
    """Optimizer, shardings and compiled step; runs of one process that agree on them share it."""
    optimizer = make_optimizer(optim, num_steps)
    places = state_shardings(model, optimizer, make_mesh(mesh), lora=lora, num_rows=num_rows)
    return optimizer, places, compile_step(loss_of(model), optimizer, places)


def adapter_record(cfg: SftRun, base: Policy) -> AdapterRecord:
    """What the workdir must say for others to find and prepare the base again."""
    assert cfg.lora is not None and isinstance(cfg.model, str)
    teaching = cfg.data if isinstance(cfg.data, CuratedItems) else None
    return AdapterRecord(
        lora=cfg.lora,
        base=cfg.model,
        digest=base_digest(base),
        spelling=teaching.spelling if teaching else None,
        starts=teaching.starts if teaching else None,
    )


def check_lengths(examples: list[Example], model: ModelConfig) -> None:
    """Refuses examples that reach past the positions the model was made for."""
    beyond = [e.id for e in examples if int(e.positions.max()) >= model.max_positions]
    if beyond:
        raise ValueError(
            f"{len(beyond)} items are longer than the model's {model.max_positions} positions:"
            f" {', '.join(beyond[:10])}. Curate shorter items or take another model."
        )


def _bar(cfg: SftRun, begin: int) -> tqdm:
    return tqdm(
        total=cfg.num_steps, initial=begin, desc="sft", unit="step", file=sys.stderr, leave=False
    )
