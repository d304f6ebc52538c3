"""JSON schemas of what `--json` prints."""

from typing import Any

COUNT = {"type": "integer", "minimum": 0}
NUMBER = {"type": "number"}
OPTIONAL = {"type": ["number", "null"]}
TEXT = {"type": "string"}
COUNTS = {"type": "array", "items": COUNT}


def strict(optional: tuple[str, ...] = (), /, **properties: Any) -> dict[str, Any]:
    """Return the schema of an object with exactly these keys."""
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def listed(item: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an array."""
    return {"type": "array", "items": item}


METHOD = "^([a-z-]+, then )?((gram|lanczos)( in float64)?|lapack|[a-z-]+)(, trained)?$"
KEPT = listed(strict(name=TEXT, tensor=TEXT, reason=TEXT))
DROPPED = listed(strict(name=TEXT, reason=TEXT))
KINDS = [f"{kind}{n}d" for kind in ("conv", "conv_transpose") for n in (1, 2, 3)]
KIND = {"enum": ["linear", "linear_transposed", "embedding", "attention", "lora", *KINDS]}
LAYER = {"name": TEXT, "tensor": TEXT, "kind": KIND, "shape": COUNTS}
LATENCY = strict(dense_ms=NUMBER, factorized_ms=NUMBER)
OPTIONAL_COUNT = {"type": ["integer", "null"], "minimum": 0}
OPTIONAL_TEXT = {"type": ["string", "null"]}
COSTS = {"macs_before": OPTIONAL_COUNT, "macs_after": OPTIONAL_COUNT, "latency": LATENCY}
RUN = {
    "run": strict(
        inputs={"type": "object", "additionalProperties": COUNTS},
        samples=COUNT,
        not_counted=OPTIONAL_TEXT,
        not_timed=OPTIONAL_TEXT,
    )
}
COSTS_AT = {"type": "object", "additionalProperties": strict(("latency", "run"), **COSTS, **RUN)}

SCORES = {"type": "object", "additionalProperties": OPTIONAL}
SPREAD = strict(values=listed(OPTIONAL), mean=OPTIONAL, std=OPTIONAL, ci95=OPTIONAL)
ONE_OR_SEVERAL = {"anyOf": [COUNT, COUNTS]}
"""The ranks of a layer: one is an integer, several are a list."""

SENSITIVITY = strict(
    metric=TEXT,
    baseline=SCORES,
    finetune_steps=COUNT,
    runs=COUNT,
    layers=listed(
        strict(
            name=TEXT,
            energy=NUMBER,
            rank=ONE_OR_SEVERAL,
            parameters_before=COUNT,
            parameters_after=COUNT,
            frobenius_norm=NUMBER,
            removed_norm=NUMBER,
            drop_before=OPTIONAL,
            drop_after={"anyOf": [SPREAD, {"type": "null"}]},
            drop_per_norm=OPTIONAL,
            drop_per_removed_norm=OPTIONAL,
        )
    ),
)

ANALYZE = strict(
    ("evaluation", "sensitivity"),
    evaluation=strict(task=TEXT, val_examples=COUNT, metrics=SCORES),
    sensitivity=SENSITIVITY,
    schema={"const": 1},
    lrzip=TEXT,
    source=strict(path=TEXT, format=TEXT, nbytes=COUNT, key=TEXT, others=listed(TEXT)),
    totals=strict(
        ("costs_at_energy",),
        parameters=COUNT,
        factorizable_parameters=COUNT,
        tensors=COUNT,
        parameters_at_energy={"type": "object", "additionalProperties": COUNT},
        costs_at_energy=COSTS_AT,
    ),
    layers=listed(
        strict(
            ("spectrum", "costs_at_energy"),
            **LAYER,
            costs_at_energy=COSTS_AT,
            matrix={**COUNTS, "minItems": 2, "maxItems": 2},
            dtype=TEXT,
            parameters=COUNT,
            rank=COUNT,
            energy_ranks={"type": "object", "additionalProperties": COUNT},
            break_even_rank=COUNT,
            noise_rank=COUNT,
            condition_number=OPTIONAL,
            effective_rank=OPTIONAL,
            stable_rank=OPTIONAL,
            spectral_norm=NUMBER,
            frobenius_norm=NUMBER,
            decay_rate=OPTIONAL,
            spectrum=listed(NUMBER),
        )
    ),
    kept=KEPT,
    subnormals=listed(strict(tensor=TEXT, count=COUNT, parameters=COUNT)),
)

BUDGET = strict(
    unit={"enum": ["params", "nbytes", "macs"]},
    whole=COUNT,
    limit=COUNT,
    used=COUNT,
    unused=COUNT,
    objective=TEXT,
    predicted_loss=NUMBER,
    bound=NUMBER,
)
ENTRY = strict(key=TEXT, others=listed(TEXT))
DIFFERENCES = listed(strict(output=TEXT, absolute=NUMBER, relative=NUMBER))
CALIBRATION = strict(
    examples=TEXT,
    count=COUNT,
    corrections=TEXT,
    remarks=listed(TEXT),
    changed=listed(TEXT),
    scarce=listed(strict(name=TEXT, positions=COUNT, columns=COUNT)),
)
COMPRESS = strict(
    ("calibration",),
    schema={"const": 1},
    lrzip=TEXT,
    input=TEXT,
    output={"type": ["string", "null"]},
    entry=ENTRY,
    totals=strict(
        ("budget", *COSTS, *RUN),
        **COSTS,
        **RUN,
        budget=BUDGET,
        parameters_before=COUNT,
        parameters_after=COUNT,
        ratio=NUMBER,
        nbytes_before=COUNT,
        nbytes_after=COUNT,
        layers_factorized=COUNT,
        max_error=OPTIONAL,
        seconds=NUMBER,
    ),
    layers=listed(
        strict(
            ("predicted_loss", "error", "method", "excess", "seconds", "output_error", *COSTS),
            **LAYER,
            **COSTS,
            predicted_loss=NUMBER,
            dtype=TEXT,
            decomposition=TEXT,
            ranks=COUNTS,
            parameters_before=COUNT,
            parameters_after=COUNT,
            error=NUMBER,
            method={"pattern": METHOD},
            excess=OPTIONAL,
            seconds=NUMBER,
            output_error=NUMBER,
        )
    ),
    kept=KEPT,
    dropped=DROPPED,
    differences=DIFFERENCES,
    compared_on=OPTIONAL_TEXT,
    not_compared=OPTIONAL_TEXT,
    notes=listed(TEXT),
    calibration=CALIBRATION,
)

EVALUATION = strict(task=TEXT, val_examples=COUNT, metrics=SCORES)
POINT = {**COMPRESS, "properties": COMPRESS["properties"] | {"metrics": SCORES}}
CURVE = strict(
    ("evaluation",),
    schema={"const": 1},
    lrzip=TEXT,
    input=TEXT,
    evaluation=EVALUATION,
    points={**listed(POINT), "minItems": 1},
)

EXPORT = strict(
    schema={"const": 1},
    lrzip=TEXT,
    input=TEXT,
    output=TEXT,
    entry=ENTRY,
    to=TEXT,
    tensors=COUNT,
    multiplied=listed(TEXT),
    dropped=DROPPED,
    differences={"anyOf": [{"type": "null"}, DIFFERENCES]},
    not_compared={"type": ["string", "null"]},
    fixed=listed(TEXT),
    doubtful=listed(TEXT),
)

SCORES = {"type": "object", "additionalProperties": OPTIONAL}
FINETUNE = strict(
    schema={"const": 1},
    lrzip=TEXT,
    input=TEXT,
    output=TEXT,
    task={"enum": ["classification", "regression"]},
    task_remark={"type": ["string", "null"]},
    train_examples=COUNT,
    val_examples=COUNT,
    before=SCORES,
    after=SCORES,
    best_epoch=COUNT,
    steps=COUNT,
    seconds=NUMBER,
    stopped={"enum": ["finished", "patience", "interrupted", "not finite"]},
    settings=strict(
        epochs=COUNT,
        steps={"type": ["integer", "null"]},
        batch_size=COUNT,
        optimizer=TEXT,
        lr=NUMBER,
        weight_decay=NUMBER,
        schedule=TEXT,
        warmup=NUMBER,
        clip=NUMBER,
        amp=TEXT,
        freeze_batchnorm={"type": "boolean"},
        patience={"type": ["integer", "null"]},
        seed={"type": "integer"},
        shard={"type": "boolean"},
    ),
    options=strict(
        ("temperature", "share", "layers"),
        data=TEXT,
        loss=TEXT,
        label_smoothing=NUMBER,
        metrics=listed(TEXT),
        only=listed(TEXT),
        skip=listed(TEXT),
        teacher={"type": ["string", "null"]},
        temperature={"type": ["number", "null"]},
        share=NUMBER,
        layers=NUMBER,
        preparation=strict(mean=listed(NUMBER), std=listed(NUMBER), augment=listed(TEXT)),
    ),
    epochs=listed(strict(epoch=COUNT, step=COUNT, lr=NUMBER, loss=OPTIONAL, metrics=SCORES, seconds=NUMBER)),
    dropped=DROPPED,
)


RANKS = {"type": "object", "additionalProperties": ONE_OR_SEVERAL}
TRIED = strict(
    what={"type": "object"},
    parameters=COUNT,
    before=SCORES,
    scores=SCORES,
    within={"type": "boolean"},
    stopped=TEXT,
    ranks=RANKS,
    seconds=NUMBER,
)
BOUNDED = {
    **COMPRESS,
    "required": [*COMPRESS["required"], "search"],
    "properties": COMPRESS["properties"]
    | {
        "search": strict(
            strategy=TEXT,
            max_drop=NUMBER,
            manner=TEXT,
            metric=TEXT,
            drop=NUMBER,
            standard_error=OPTIONAL,
            before=SCORES,
            after=SCORES,
            test={"anyOf": [strict(before=SCORES, after=SCORES), {"type": "null"}]},
            train_examples=COUNT,
            val_examples=COUNT,
            interrupted={"type": "boolean"},
            tried=listed(TRIED),
        )
    },
}
