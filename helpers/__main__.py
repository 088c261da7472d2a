"""The command line: python -m helpers doctor | run | check | train | merge | ask | evaluate | serve."""

import argparse
import json
import os
import re
import sys
from pathlib import Path

PRECISIONS = ("float32", "bfloat16", "float16")


def doctor(args: argparse.Namespace) -> int:
    """Report versions, device, memory and the models that come as packages; 1 when something is missing."""
    import platform
    import shutil
    from importlib.metadata import PackageNotFoundError, version

    from helpers.machine.paths import ROOT

    problems = []

    def line(name: str, value: object, problem: str = "") -> None:
        print(f"{'!!' if problem else 'ok'}  {name:<16} {value}" + (f"  ->  {problem}" if problem else ""))
        if problem:
            problems.append(problem)

    line("python", platform.python_version())
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    marked = r'^([\w-]+)==([\w.]+)(?: ; python_version ([<>]=?) "3\.(\d+)")?'
    for package, wanted, sign, minor in re.findall(marked, requirements, re.MULTILINE):
        if sign and (sys.version_info[1] < int(minor)) != (sign == "<"):
            continue
        try:
            installed = version(package)
            problem = "" if installed.split("+")[0] == wanted else f"Run: pip install {package}=={wanted}"
        except PackageNotFoundError:
            installed, problem = "missing", f"Run: pip install {package}=={wanted}"
        line(package, installed, problem)
    if problems:
        print("\nSome packages are missing or differ. All at once: make install, or pip install -r requirements.txt")
        return 1
    import psutil
    import torch

    from helpers.machine.loading import ModelError
    from helpers.machine.packaged import PACKAGED, converted, installed
    from helpers.machine.paths import cache_folder
    from helpers.models import pick_device, pick_dtype
    from helpers.retrieval.search import find_encoder

    device = pick_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{device.type}, {torch.get_num_threads()} threads"
    line("device", f"{name}, computes in {str(pick_dtype(device)).removeprefix('torch.')}")
    memory, free = psutil.virtual_memory().available / 2**30, 0.0
    line("free memory", f"{memory:.1f} GiB", "" if memory >= 6 else "Close other programs: a finetune needs 6 GiB.")
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache_folder()).free / 2**30
        line("free disk", f"{free:.1f} GiB", "" if free >= 3 else f"Make room: 3 GiB are needed in {cache_folder()}.")
    except OSError as error:
        line("free disk", "no folder for models", str(error))
    for model in PACKAGED.values():
        if model.hub and not installed(model):
            line(f"{model.name} model", f"not installed; optional: make larger, or {model.install}")
            continue
        try:
            line(f"{model.name} model", converted(model))
        except (ModelError, OSError) as error:
            line(f"{model.name} model", "not ready", str(error))
    try:
        line("embedding model", find_encoder())
    except ModelError as error:
        line("embedding model", "not ready", str(error))
    print("\nAll is ready." if not problems else f"\n{len(problems)} thing(s) to mend; see the lines that start with !!")
    return 1 if problems else 0


def run(args: argparse.Namespace) -> int:
    """Run notebooks top to bottom."""
    from helpers.workshop.notebooks import run

    parameters = {}
    for setting in args.parameter:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"-p {setting}: write it as NAME=VALUE, for example -p epochs=1")
        parameters[name] = value
    return run(args.notebook, args.out, parameters, args.update)


def columns(setting: str) -> dict[str, str]:
    """Understand question=COLUMN,answer=COLUMN."""
    parts = [part.partition("=") for part in re.split(r",(?=\w+=)", setting)] if setting else []
    if not all(equals and column for _, equals, column in parts):
        raise ValueError(f"--map {setting}: write it as question=COLUMN,answer=COLUMN")
    return {field: column for field, _, column in parts}


def check(args: argparse.Namespace) -> int:
    """Report what a file of questions and answers holds; 1 when some of it cannot be used."""
    from helpers.own_data.report import inspect_data
    from helpers.own_data.rows import read_any

    test = [example for path in args.test for example in read_any(path)]
    found = inspect_data(args.data, args.format, columns(args.map), test)
    print(found)
    return 1 if found.broken_off or found.usable < found.rows else 0


def train(args: argparse.Namespace) -> int:
    """Finetune a model on a file and save it. Under `accelerate launch` every process comes here, the first one speaks."""
    import shutil

    from helpers.data import split
    from helpers.machine.files import check_apart, check_disk, check_file, check_folder, check_model_folder
    from helpers.own_data.layouts import recognise
    from helpers.own_data.rows import read_any

    first = os.environ.get("RANK", "0") == "0"  # the process that writes
    checkpoints = args.output.with_name(args.output.name + "-checkpoints")
    if first:
        check_apart(args.output, {"--data": args.data, "--tensorboard": args.tensorboard, "--json": args.json})
        goes_on = any(checkpoints.glob("*.pt"))  # the run that left them was allowed to save its model here
        goes_further = (Path(args.model) / "adapter_config.json").is_file()  # with an adapter
        mark = "adapter_config.json" if args.lora_rank or goes_further else "config.json"
        check_model_folder(args.output, "--output", mark, args.overwrite or goes_on)
        check_folder(checkpoints, "the folder for checkpoints")
        check_folder(args.tensorboard, "--tensorboard")
        check_file(args.json, "--json")
    source = recognise(args.data, args.format, columns(args.map))
    examples, held_out = read_any(source), []  # before torch is loaded, so that a wrong file is told at once
    if args.held_out:
        examples, held_out = split(examples, args.held_out, seed=args.seed)

    from helpers import lora
    from helpers.machine import checkpoint
    from helpers.machine.probe import context_window
    from helpers.machine.process import processes, tensorboard
    from helpers.models import find_model, pick_device, save_model, saved_precision
    from helpers.tokenization import encode_all
    from helpers.training import Config, planned_steps, train

    config = Config(
        epochs=args.epochs,
        learning_rate=args.learning_rate,
        max_steps=args.max_steps,
        checkpoint_every=args.checkpoint_every or Config.checkpoint_every,
        seed=args.seed,
    )
    state = processes(pick_device())
    state.print(f"{source}\n{len(examples)} rows to train on, {len(held_out)} held out.")

    log = tensorboard(args.tensorboard) if args.tensorboard and first else None
    if first and mark == "config.json":  # roughly, before the model is loaded; exactly below
        files = find_model(args.model).glob("*.safetensors")
        check_disk(args.output, sum(path.stat().st_size for path in files), "the finetuned model")

    def start() -> tuple:
        return lora.open_learner(args.model, args.lora_rank, args.lora_alpha, args.lora_targets, args.seed)

    model, tokenizer = start()
    window = context_window(model)
    rows, held_rows = (encode_all(tokenizer, part, window, args.answers) for part in (examples, held_out))
    if first:
        there = sum(path.stat().st_size for path in checkpoints.glob("*.pt"))
        needed = checkpoint.disk_needed(model, planned_steps(len(rows), config), args.checkpoint_every) - there
        check_disk(args.output, needed, "the model with its checkpoints (--checkpoint-every 0: none)")
    history = train(model, rows, config, held_rows, on_step=log, folder=checkpoints if args.checkpoint_every else None)
    if state.num_processes > 1:  # the weights may be cut into shares: put them together in a model of one piece
        weights = checkpoint.learnt_weights(model)
        model, tokenizer = start()
        model.load_state_dict(weights, strict=False)
    if not first:
        return 0
    if lora.layers(model):
        lora.save(model, args.output)
    else:
        save_model(model, tokenizer, args.output, precision(args.dtype))
        if not args.dtype and saved_precision(model) != model.dtype:
            name = str(saved_precision(model)).removeprefix("torch.")
            print(f"Saved in {name}, as it came; --dtype float32 keeps the last bits of what was learnt, in twice the space.")
    shutil.rmtree(checkpoints, ignore_errors=True)  # the run is complete
    rate = history.supervised_tokens / history.seconds
    report = {
        "device": str(model.device),
        "processes": state.num_processes,
        "rows": history.rows,
        "tokens": history.tokens,
        "supervised_tokens": history.supervised_tokens,
        "seconds": history.seconds,
        "supervised_tokens_per_second": rate,
        "peak_memory_gib": history.peak_memory,
        "resumed_at": history.resumed_at,
        "losses": [step["loss"] for step in history.steps],
        "held_out_losses": history.held_out,
        "skipped_steps": history.skipped,
    }
    print(f"{history.rows} rows in {history.seconds:.0f} s, {rate:.0f} supervised tokens/s, {history.peak_memory:.1f} GiB.")
    if history.skipped:
        print(f"{len(history.skipped)} of {len(history.steps)} steps changed nothing: a gradient was too large for float16.")
    write_json(args.json, report)
    print(f'Saved. Now try: python -m helpers ask --model {args.output} "your question"')
    return 0


def precision(name: str | None):
    """Turn "float32" into what torch means by it."""
    import torch

    return getattr(torch, name) if name else None


def merge(args: argparse.Namespace) -> int:
    """Save an adapter and the model it was trained on as one model."""
    from helpers.lora import adapter_folder, open_model
    from helpers.machine.files import check_model_folder
    from helpers.models import save_model

    check_model_folder(args.output, "--output", "config.json", args.overwrite)
    if adapter_folder(args.model) is None:
        raise ValueError(f"--model {args.model}: is not an adapter, so there is nothing to merge. It can be used as it is.")
    model, tokenizer = open_model(args.model)
    save_model(model, tokenizer, args.output, precision(args.dtype))
    print(f'Saved. Now try: python -m helpers ask --model {args.output} "your question"')
    return 0


def ask(args: argparse.Namespace) -> int:
    """Answer one question, or chat."""
    from helpers.generation import stream
    from helpers.lora import open_model

    model, tokenizer = open_model(args.model)
    if not args.question:
        print("Ask away; an empty line ends the chat. Each question stands alone.")
    while True:
        try:
            question = args.question or input("> ").strip()
        except EOFError:
            question = ""
        if not question:
            return 0
        for piece in stream(model, tokenizer, question):
            print(piece, end="", flush=True)
        print()
        if args.question:
            return 0


def evaluate(args: argparse.Namespace) -> int:
    """Ask a model every question of a file and report how it did, and whether it is better than another."""
    from helpers.machine.files import check_file
    from helpers.own_data.rows import read_any

    check_file(args.report, "--report")
    check_file(args.json, "--json")
    examples = read_any(args.data, args.format, columns(args.map))  # before torch is loaded: a wrong file is told at once

    from helpers.evaluation import consistent, evaluate, interval, summary
    from helpers.lora import open_model
    from helpers.measures.comparison import compare, report
    from helpers.measures.text import error_kinds
    from helpers.text.judging import REFUSALS

    refusals = args.refusal or REFUSALS
    models, tables = {name: open_model(name) for name in filter(None, (args.model, args.compare))}, {}
    for name, (model, tokenizer) in models.items():
        table = evaluate(model, tokenizer, examples, progress=f"{name} answers", refusals=refusals)
        tables[name] = table.assign(error=error_kinds(examples, table["answer"], refusals))
        print(f"{name}\n{summary(table).to_string(float_format=lambda value: f'{value:.3f}')}")
        agreeing = consistent(table)
        if len(agreeing):
            print(f"consistent over wordings: {interval(agreeing)} of {len(agreeing)} facts")
    verdict = compare(args.model, tables[args.model], args.compare, table) if args.compare else None
    if verdict:
        print(f"\n{verdict}")
    write_text(args.report, report(tables, verdict) if args.report else "")
    table = tables[args.model]
    answers = table[["id", "question", "answer", "expected", "correct", "error"]].to_dict("records")
    written = {"summary": summary(table).to_dict("index"), "answers": answers}
    write_json(args.json, {**written, "verdict": str(verdict)} if verdict else written)
    return 0


def serve(args: argparse.Namespace) -> int:
    """Serve models until Ctrl-C."""
    from helpers.serving.server import run

    if args.until_stdin_closes:
        from helpers.machine.process import stop_when_stdin_closes

        stop_when_stdin_closes()
    run(args.model, args.host, args.port, args.api_key or os.environ.get("FINETUNING_API_KEY"), args.data_dir)
    return 0


def write_text(path: Path | None, text: str) -> None:
    """Write a report when a file for it was named."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def write_json(path: Path | None, content: dict) -> None:
    """Write figures when a file for them was named."""
    write_text(path, json.dumps(content, indent=1, default=float))


def names(setting: str) -> list[str]:
    """Understand q_proj,v_proj."""
    return [name.strip() for name in setting.split(",") if name.strip()]


def parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    from helpers.data import ANSWERS
    from helpers.own_data.layouts import FORMATS

    top = argparse.ArgumentParser(prog="python -m helpers", description="Finetune a language model, ask it, and measure it.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(function, help: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            function.__name__, help=help, description=help, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        made.set_defaults(function=function)
        return made

    model_help = '"embedded" (needs no network), a folder, or a name on the hub such as owner/model'
    command(doctor, "check that this machine has all the course needs")

    added = command(run, "run notebooks top to bottom and report minutes, claims and failures")
    added.add_argument("notebook", nargs="*", help='such as "01" or a path; all when left out')
    added.add_argument("--out", type=Path, default=Path("build"), help="folder for executed copies and web pages")
    added.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="set one of its knobs")
    added.add_argument("--update", action="store_true", help="for maintainers: put the outputs into notebooks/")

    def data(added: argparse.ArgumentParser) -> None:
        text = "JSON Lines, JSON, CSV, TSV or Parquet file, a folder of Markdown, or a name on the hub such as owner/name"
        added.add_argument("--data", required=True, help=text)
        added.add_argument("--format", choices=FORMATS, help="how to read it, where that is not recognised")
        added.add_argument("--map", default="", metavar="question=COLUMN,answer=COLUMN", help="which columns to read")

    added = command(check, "report what a file of questions and answers holds, and what seems wrong with it")
    data(added)
    added.add_argument("--test", action="append", default=[], metavar="FILE", help="questions that must not be in it")

    added = command(train, "finetune a model on your questions and answers")
    data(added)
    added.add_argument("--model", default="embedded", help=model_help)
    added.add_argument("--output", type=Path, default=Path("build/models/mine"), help="folder for the finetuned model")
    added.add_argument("--overwrite", action="store_true", help="replace the model that is in that folder")
    added.add_argument("--epochs", type=int, default=3, help="how often each row is seen")
    added.add_argument("--learning-rate", type=float, default=4e-4, help="how far a step goes")
    added.add_argument("--lora-rank", type=int, default=0, help="train an adapter of this rank; 0: all of what --model is")
    added.add_argument("--lora-alpha", type=float, help="what the adapter adds is times alpha / rank; left out: 2")
    added.add_argument("--lora-targets", type=names, metavar="NAME,NAME", help="layers to adapt; left out: all linear ones")
    added.add_argument("--dtype", choices=PRECISIONS, help="precision to save in; left out: what the weights came in")
    added.add_argument("--checkpoint-every", type=int, default=100, help="steps between checkpoints; 0: none")
    added.add_argument("--tensorboard", type=Path, help="folder to log losses to for TensorBoard, if that is installed")
    added.add_argument("--max-steps", type=int, help="stop after so many steps")
    added.add_argument("--held-out", type=float, default=0.0, help="share of the rows to keep back and take a loss of")
    added.add_argument("--answers", choices=ANSWERS, default="all", help="of a conversation: which answers are learnt")
    added.add_argument("--seed", type=int, default=0, help="decides the order of the rows and the split")
    added.add_argument("--json", type=Path, help="write the figures to this file")

    added = command(merge, "save an adapter and its base as one model")
    added.add_argument("--model", required=True, help="folder of the adapter")
    added.add_argument("--output", type=Path, required=True, help="folder for the model")
    added.add_argument("--overwrite", action="store_true", help="replace the model that is in that folder")
    added.add_argument("--dtype", choices=PRECISIONS, help="precision to save in; left out: what the base came in")

    added = command(ask, "ask a model a question, or chat with it")
    added.add_argument("--model", default="embedded", help=model_help)
    added.add_argument("question", nargs="?", help="left out: a chat")

    added = command(evaluate, "measure how many questions of a file a model answers right")
    added.add_argument("--model", default="embedded", help=model_help)
    data(added)
    text = "a sentence by which your answers decline, beside the usual ones; may be given several times"
    added.add_argument("--refusal", action="append", metavar="TEXT", help=text)
    added.add_argument("--compare", metavar="OTHER", help="another model, asked the same questions: is --model better?")
    added.add_argument("--report", type=Path, metavar="FILE.html", help="write a page with figures, errors and all answers")
    added.add_argument("--json", type=Path, help="write figures and all answers to this file")

    added = command(serve, "answer Lamini's and OpenAI's clients, and finetune for them")
    added.add_argument("--model", default="embedded", help=model_help)
    added.add_argument("--host", default="127.0.0.1", help="address to listen on; any but this machine's own needs a key")
    added.add_argument("--port", type=int, default=8000, help="port to listen on; 0: a free one")
    added.add_argument("--api-key", help="what clients have to send (or set FINETUNING_API_KEY)")
    added.add_argument("--data-dir", type=Path, default=Path("build/server"), help="folder for data sets, jobs and models")
    added.add_argument("--until-stdin-closes", action="store_true", help="stop when the process that started this ends")
    return top


def main() -> int:
    """Run one command; an expected error becomes one line on standard error."""
    args = parser().parse_args()
    try:
        return args.function(args)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, FloatingPointError, ImportError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
