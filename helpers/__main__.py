"""The command line: python -m helpers doctor | run | replicate | check | train | merge | ask | evaluate | serve.

What a command needs is imported in it: torch takes seconds, and `--help` and the news of a wrong file shall not wait for it.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from helpers.data import Example
    from helpers.training import History

DTYPES = ("float32", "bfloat16", "float16")
FIRST = os.environ.get("RANK", "0") == "0"  # of several processes, the one that writes and speaks


def doctor_command(args: argparse.Namespace) -> int:
    """Report versions, device, memory and the models that come as packages; 1 when something is missing."""
    from helpers.workshop.doctor import doctor

    return doctor()


def run_command(args: argparse.Namespace) -> int:
    """Run notebooks top to bottom."""
    from helpers.workshop.notebooks import run_notebooks

    parameters = {}
    for setting in args.parameter:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"-p {setting}: write it as NAME=VALUE, for example -p epochs=1")
        parameters[name] = value
    if not args.update:
        return run_notebooks(args.notebook, args.out, parameters, update=False)
    from helpers.workshop.replication import record, recorded

    with recorded(args.out):
        return run_notebooks(args.notebook, args.out, parameters, update=True, keep=record)


def replicate_command(args: argparse.Namespace) -> int:
    """Run lessons again with other seeds, and keep what they came to."""
    from helpers.workshop.replication import replicate

    return replicate(args.notebook, args.seeds, args.out)


def columns(setting: str) -> dict[str, str]:
    """Understand question=COLUMN,answer=COLUMN."""
    parts = [part.partition("=") for part in re.split(r",(?=\w+=)", setting)] if setting else []
    if not all(equals and column for _, equals, column in parts):
        raise ValueError(f"--map {setting}: write it as question=COLUMN,answer=COLUMN")
    return {field: column for field, _, column in parts}


def read_rows(args: argparse.Namespace) -> "tuple[list[Example], str]":
    """Read what --data, --format, --map and --take name: the rows, and how they were read."""
    from helpers.own_data.layouts import recognise
    from helpers.own_data.rows import read_any

    source = recognise(args.data, args.format, columns(args.map), args.take)
    return read_any(source), str(source)


def check_command(args: argparse.Namespace) -> int:
    """Report what a file of questions and answers holds; 1 when some of it cannot be used."""
    from helpers.own_data.report import inspect_data
    from helpers.own_data.rows import read_tests

    named = columns(args.map)
    found = inspect_data(args.data, args.format, named, read_tests(args.test, named), take=args.take)
    print(found)
    return 1 if found.broken_off or found.usable < found.rows or not found.usable else 0


def check_outputs(args: argparse.Namespace, checkpoints: Path) -> None:
    """Raise OutputError when what `train` will write beside the model cannot be written."""
    from helpers.machine.files import check_apart, check_file, check_folder

    check_apart(args.output, {"--data": args.data, "--tensorboard": args.tensorboard, "--json": args.json})
    check_folder(checkpoints, "the folder for checkpoints")
    check_folder(args.tensorboard, "--tensorboard")
    check_file(args.json, "--json")


def open_learner(
    name: str | Path, rank: int = 0, alpha: float | None = None, targets: Sequence[str] | None = None, seed: int = 0
) -> tuple:
    """Load a model to train, and its tokenizer: the whole of it, or, with a rank, an adapter beside it.

    The name of an adapter gives its base with that adapter, which then learns on. rank, alpha, targets: as in `lora.add`.
    Raises ModelError when they ask for another adapter than the one named.
    """
    from helpers import lora
    from helpers.machine.adapter_files import adapter_folder
    from helpers.models import open_model

    model, tokenizer = open_model(name, merged=False)
    if adapter := adapter_folder(name):
        adapter.check_same(model, rank, alpha, targets)
    elif rank:
        lora.add(model, rank, alpha, targets, seed)
    elif targets or alpha is not None:
        raise ValueError("LoRA's alpha and targets were given without its rank. Add --lora-rank, such as 16.")
    return model, tokenizer


def train_command(args: argparse.Namespace) -> int:
    """Finetune a model on a file and save it. Under `accelerate launch` every process comes here, the first one speaks."""
    from helpers.machine.limits import check_seed, rising_loss

    checkpoints = args.output.with_name(args.output.name + "-checkpoints")
    check_seed(args.seed)
    if FIRST:
        check_outputs(args, checkpoints)
    examples, how = read_rows(args)

    from helpers.machine.adapter_files import adapter_folder
    from helpers.machine.checkpoint import saved_checkpoints
    from helpers.machine.files import check_model_folder, write_json
    from helpers.machine.hub import check_copy_fits
    from helpers.machine.process import tensorboard
    from helpers.recipe import finetune
    from helpers.training import Config

    an_adapter = bool(args.lora_rank or adapter_folder(args.model))  # a new one, or one that learns on
    if an_adapter and args.dtype:
        raise ValueError("--dtype is for a model; an adapter is saved as it is trained, in float32. Leave it out.")
    if FIRST:  # a run that left checkpoints was allowed to save its model here
        mark, goes_on = "adapter_config.json" if an_adapter else "config.json", bool(saved_checkpoints(checkpoints))
        check_model_folder(args.output, "--output", mark, args.overwrite or goes_on)
    config = Config(
        epochs=args.epochs,
        learning_rate=args.learning_rate,
        max_steps=args.max_steps,
        checkpoint_every=args.checkpoint_every or Config.checkpoint_every,
        seed=args.seed,
    )
    if FIRST:
        print(how, flush=True)
    if FIRST and not an_adapter:  # roughly, before the model is loaded; exactly once it is
        check_copy_fits(args.model, args.output)
    history = finetune(
        examples,
        lambda: open_learner(args.model, args.lora_rank, args.lora_alpha, args.lora_targets, args.seed),
        args.output,
        config,
        checkpoints,
        resumable=bool(args.checkpoint_every),
        held_out=args.held_out,
        answers=args.answers,
        dtype=precision(args.dtype),
        on_step=tensorboard(args.tensorboard) if args.tensorboard and FIRST else None,
    )
    if FIRST:
        say_finetuned(history)
        if args.json:
            write_json(args.json, figures(history))
        if worse := rising_loss([step["loss"] for step in history.steps]):
            print(f"warning: {worse} What came of it is in {args.output}.", file=sys.stderr)
        else:
            say_saved(args.output)
    return 0


def say_finetuned(history: "History") -> None:
    """Say what a finetune did."""
    rate = history.supervised_tokens / history.seconds
    memory = f"{history.peak_memory:.1f} GiB beyond the loaded model"
    print(f"{history.rows} rows in {history.seconds:.0f} s, {rate:.0f} supervised tokens/s, {memory}.")
    if history.skipped:
        skipped = f"{len(history.skipped)} of {len(history.steps)} steps"
        print(f"{skipped} changed nothing: a gradient was too large for float16.")


def figures(history: "History") -> dict[str, object]:
    """Put together what `train --json` writes."""
    from helpers.machine.device import pick_device

    return {
        "device": str(pick_device()),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "rows": history.rows,
        "tokens": history.tokens,
        "supervised_tokens": history.supervised_tokens,
        "seconds": history.seconds,
        "supervised_tokens_per_second": history.supervised_tokens / history.seconds,
        "peak_memory_gib": history.peak_memory,
        "resumed_at": history.resumed_at,
        "losses": [step["loss"] for step in history.steps],
        "held_out_losses": history.held_out,
        "skipped_steps": history.skipped,
    }


def say_saved(output: Path) -> None:
    """Say that there is a new model, and how to ask it."""
    print(f'Saved. Now try: python -m helpers ask --model {output} "your question"')


def precision(name: str | None) -> "torch.dtype | None":
    """Turn "float32" into what torch means by it."""
    import torch

    return getattr(torch, name) if name else None


def merge_command(args: argparse.Namespace) -> int:
    """Save an adapter and the model it was trained on as one model."""
    from helpers.machine.adapter_files import adapter_folder
    from helpers.machine.files import check_model_folder
    from helpers.models import open_model, save_model

    check_model_folder(args.output, "--output", "config.json", args.overwrite)
    if adapter_folder(args.model) is None:
        raise ValueError(f"--model {args.model}: is not an adapter, so there is nothing to merge. It can be used as it is.")
    model, tokenizer = open_model(args.model)
    save_model(model, tokenizer, args.output, precision(args.dtype))
    say_saved(args.output)
    return 0


def ask_command(args: argparse.Namespace) -> int:
    """Answer one question, or chat."""
    from helpers.machine.console import checked_question, next_question

    question = None if args.question is None else checked_question(args.question)

    from helpers.generation import stream
    from helpers.models import open_model

    model, tokenizer = open_model(args.model)
    if question is None:
        print("Ask away; an empty line ends the chat. Each question stands alone.")
    while asked := question or next_question():
        for piece in stream(model, tokenizer, asked):
            print(piece, end="", flush=True)
        print()
        if question:
            break
    return 0


def evaluate_command(args: argparse.Namespace) -> int:
    """Ask a model every question of a file and report how it did, and whether it is better than another."""
    from helpers.machine.files import check_file, write_json, write_text

    check_file(args.report, "--report")
    check_file(args.json, "--json")
    examples, _ = read_rows(args)

    from helpers.evaluation import consistent, evaluate, interval, summary
    from helpers.measures.comparison import compare, html_report
    from helpers.measures.errors import error_kinds
    from helpers.models import open_model
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
    verdict = compare(args.model, tables[args.model], args.compare, tables[args.compare]) if args.compare else None
    if verdict:
        print(f"\n{verdict}")
    if args.report:
        write_text(args.report, html_report(tables, verdict))
    if args.json:
        table = tables[args.model]
        answers = table[["id", "question", "answer", "expected", "correct", "error"]].to_dict("records")
        written = {"summary": summary(table).to_dict("index"), "answers": answers}
        write_json(args.json, {**written, "verdict": str(verdict)} if verdict else written)
    return 0


def serve_command(args: argparse.Namespace) -> int:
    """Serve models until Ctrl-C."""
    from helpers.serving.server import serve_forever

    if args.until_stdin_closes:
        from helpers.machine.process import stop_when_stdin_closes

        stop_when_stdin_closes()
    serve_forever(args.model, args.host, args.port, args.api_key or os.environ.get("FINETUNING_API_KEY"), args.data_dir)
    return 0


def names(setting: str) -> list[str]:
    """Understand q_proj,v_proj."""
    return [name.strip() for name in setting.split(",") if name.strip()]


def parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    top = argparse.ArgumentParser(prog="python -m helpers", description="Finetune a language model, ask it, and measure it.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    described: list[tuple[Callable[[argparse.Namespace], int], Callable[[argparse.ArgumentParser], None], str]] = [
        (doctor_command, no_options, "check that this machine has all the course needs"),
        (run_command, run_options, "run notebooks top to bottom and report minutes, claims and failures"),
        (replicate_command, replicate_options, "for maintainers: run lessons once a seed, and keep what their boxes came to"),
        (check_command, check_options, "report what a file of questions and answers holds, and what seems wrong with it"),
        (train_command, train_options, "finetune a model on your questions and answers"),
        (merge_command, merge_options, "save an adapter and its base as one model"),
        (ask_command, ask_options, "ask a model a question, or chat with it"),
        (evaluate_command, evaluate_options, "measure how many questions of a file a model answers right"),
        (serve_command, serve_options, "answer Lamini's and OpenAI's clients, and finetune for them"),
    ]
    for function, options, text in described:
        name, style = function.__name__.removesuffix("_command"), argparse.ArgumentDefaultsHelpFormatter
        added = commands.add_parser(name, help=text, description=text, formatter_class=style)
        added.set_defaults(function=function)
        options(added)
    return top


def no_options(added: argparse.ArgumentParser) -> None:
    """Leave a command without options."""


def run_options(added: argparse.ArgumentParser) -> None:
    """Describe the options of `run`."""
    added.add_argument("notebook", nargs="*", help='such as "01" or a path; all when left out')
    added.add_argument("--out", type=Path, default=Path("build"), help="folder for executed copies and web pages")
    added.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="set one of its knobs")
    added.add_argument("--update", action="store_true", help="for maintainers: put the outputs into notebooks/")


def replicate_options(added: argparse.ArgumentParser) -> None:
    """Describe the options of `replicate`."""
    added.add_argument("notebook", nargs="*", help='such as "01" or a path; all that have boxes when left out')
    added.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help="a run for each")
    added.add_argument("--out", type=Path, default=Path("build/replicate"), help="folder for a build folder a seed")


def model_option(added: argparse.ArgumentParser) -> None:
    """Describe --model, which four commands share."""
    text = '"embedded" (needs no network), a folder, or a name on the hub such as owner/model'
    added.add_argument("--model", default="embedded", help=text)


def data_options(added: argparse.ArgumentParser) -> None:
    """Describe --data and how it is read, which three commands share."""
    from helpers.own_data.names import FORMATS

    text = "a file (JSON Lines, JSON, CSV, TSV, Parquet, Arrow, text; packed or not), a folder, - or a name on the hub"
    added.add_argument("--data", required=True, help=text)
    added.add_argument("--format", choices=FORMATS, help="how to read it, where that is not recognised")
    fields = "question, answer, id, messages, context, system, history"
    added.add_argument("--map", default="", metavar="FIELD=COLUMN,...", help=f"which columns to read, for: {fields}")
    text = "where rows are rated: all of them, the good ones, or those of a score, such as 'score>=4'"
    added.add_argument("--take", metavar="all|good|SCORE", help=text)


def check_options(added: argparse.ArgumentParser) -> None:
    """Describe the options of `check`."""
    data_options(added)
    added.add_argument("--test", action="append", default=[], metavar="FILE", help="questions that must not be in it")


def train_options(added: argparse.ArgumentParser) -> None:
    """Describe the options of `train`."""
    from helpers.data import ANSWERS

    data_options(added)
    model_option(added)
    added.add_argument("--output", type=Path, default=Path("build/models/mine"), help="folder for the finetuned model")
    added.add_argument("--overwrite", action="store_true", help="replace the model that is in that folder")
    added.add_argument("--epochs", type=int, default=3, help="how often each row is seen")
    added.add_argument("--learning-rate", type=float, default=4e-4, help="how far a step goes")
    added.add_argument("--lora-rank", type=int, default=0, help="train an adapter of this rank; 0: all of what --model is")
    added.add_argument("--lora-alpha", type=float, help="what the adapter adds is times alpha / rank; left out: twice the rank")
    added.add_argument("--lora-targets", type=names, metavar="NAME,NAME", help="layers to adapt; left out: all linear ones")
    added.add_argument("--dtype", choices=DTYPES, help="precision to save in; left out: what the weights came in")
    added.add_argument("--checkpoint-every", type=int, default=100, help="steps between checkpoints; 0: none")
    added.add_argument("--tensorboard", type=Path, help="folder to log losses to for TensorBoard, if that is installed")
    added.add_argument("--max-steps", type=int, help="stop after so many steps")
    added.add_argument("--held-out", type=float, default=0.0, help="share of the rows to keep back and take a loss of")
    added.add_argument("--answers", choices=ANSWERS, default="all", help="of a conversation: which answers are learnt")
    added.add_argument("--seed", type=int, default=0, help="decides the order of the rows and the split")
    added.add_argument("--json", type=Path, help="write the figures to this file")


def merge_options(added: argparse.ArgumentParser) -> None:
    """Describe the options of `merge`."""
    added.add_argument("--model", required=True, help="folder of the adapter")
    added.add_argument("--output", type=Path, required=True, help="folder for the model")
    added.add_argument("--overwrite", action="store_true", help="replace the model that is in that folder")
    added.add_argument("--dtype", choices=DTYPES, help="precision to save in; left out: what the base came in")


def ask_options(added: argparse.ArgumentParser) -> None:
    """Describe the options of `ask`."""
    model_option(added)
    added.add_argument("question", nargs="?", help="left out: a chat")


def evaluate_options(added: argparse.ArgumentParser) -> None:
    """Describe the options of `evaluate`."""
    model_option(added)
    data_options(added)
    text = "a sentence by which your answers decline, beside the usual ones; may be given several times"
    added.add_argument("--refusal", action="append", metavar="TEXT", help=text)
    added.add_argument("--compare", metavar="OTHER", help="another model, asked the same questions: is --model better?")
    added.add_argument("--report", type=Path, metavar="FILE.html", help="write a page with figures, errors and all answers")
    added.add_argument("--json", type=Path, help="write figures and all answers to this file")


def serve_options(added: argparse.ArgumentParser) -> None:
    """Describe the options of `serve`."""
    model_option(added)
    added.add_argument("--host", default="127.0.0.1", help="address to listen on; any but this machine's own needs a key")
    added.add_argument("--port", type=int, default=8000, help="port to listen on; 0: a free one")
    added.add_argument("--api-key", help="what clients have to send (or set FINETUNING_API_KEY)")
    added.add_argument("--data-dir", type=Path, default=Path("build/server"), help="folder for data sets, jobs and models")
    added.add_argument("--until-stdin-closes", action="store_true", help="stop when the process that started this ends")


def main() -> int:
    """Run one command; an expected error becomes one line on standard error."""
    from helpers.machine.console import keep_all_output
    from helpers.own_data.names import ChoiceError

    keep_all_output()
    args = parser().parse_args()
    try:
        return args.function(args)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except ChoiceError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except (ValueError, OSError, RuntimeError, FloatingPointError, ImportError, MemoryError) as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
