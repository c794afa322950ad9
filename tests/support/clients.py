"""Clients that are generated from the client spec, one for each language of `examples/`.

`python -m support.clients` makes them all, each as a project with its example that runs (`make clients`).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from support.sdk import python_with
from support.spec_lint import write_client_spec

ROOT = Path(__file__).parents[2]
EXAMPLES, BUILD = ROOT / "examples", ROOT / "build" / "clients"
OAPI_CODEGEN = "github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2"


class Language(NamedTuple):
    """How the client of one language is made, and its example is run. Commands run in the project's directory."""

    tools: tuple[str, ...]  # programs that have to be there
    client: str  # where the generated code goes, in the project
    generate: Callable[[Path, Path], None]  # from the spec to there
    build: tuple[tuple[str, ...], ...]
    run: tuple[str, ...]


def _openapi_generator(name: str, inside: str, *properties: str) -> Callable[[Path, Path], None]:
    """A generator of openapi-generator; `inside`: the part of what it makes that is the client."""

    def generate(spec: Path, client: Path) -> None:
        python = python_with("openapi-generator", "openapi-generator-cli==7.26.0")
        made = client.parent / ".generated"
        program = "import openapi_generator_cli, sys; sys.exit(openapi_generator_cli.cli())"
        _run(
            (python, "-c", program, "generate", f"--generator-name={name}", f"--input-spec={spec}"),
            (f"--output={made}", f"--additional-properties={','.join(properties)}"),
            (
                "--global-property=apis,models,supportingFiles,apiDocs=false,modelDocs=false,apiTests=false,modelTests=false",
            ),
        )
        shutil.move(made / inside, client)
        shutil.rmtree(made, ignore_errors=True)

    return generate


def _oapi_codegen(spec: Path, client: Path) -> None:
    client.mkdir()
    options = ("-generate=types,client", "-response-type-suffix=Answer", f"-package={client.name}")
    _run(("go", "run", OAPI_CODEGEN), options, (f"-o={client / 'client.go'}", str(spec)))


LANGUAGES = {
    "python": Language(
        ("java",),
        "boxlite_client",
        _openapi_generator("python", "boxlite_client", "packageName=boxlite_client"),
        (),
        ("python", "greeter.py"),
    ),
    "typescript": Language(
        ("java", "node", "npm"),
        "boxlite",
        _openapi_generator("typescript-fetch", ".", "importFileExtension=.js"),
        (("npm", "install", "--no-audit", "--no-fund", "--loglevel=error"), ("npm", "run", "--silent", "build")),
        ("npm", "run", "--silent", "start"),
    ),
    "go": Language(
        ("go",),
        "boxlite",
        _oapi_codegen,
        (("go", "mod", "tidy"), ("go", "vet", "./..."), ("go", "build", "-o=greeter", ".")),
        ("./greeter",),
    ),
    "java": Language(
        ("java", "javac", "mvn"),
        "src/main/java/boxlite",
        _openapi_generator(
            "java",
            "src/main/java/boxlite",
            "invokerPackage=boxlite,apiPackage=boxlite.api,modelPackage=boxlite.model",
            "enumUnknownDefaultCase=true",
        ),
        (("mvn", "--quiet", "--batch-mode", "compile"),),
        ("mvn", "--quiet", "--batch-mode", "exec:java"),
    ),
    "rust": Language(
        ("java", "cargo"),
        "boxlite",
        _openapi_generator("rust", ".", "packageName=boxlite_client"),
        (("cargo", "build", "--quiet"),),
        ("cargo", "run", "--quiet"),
    ),
}


def missing(language: str) -> str | None:
    """Why the client of a language cannot be made here; None when it can."""
    absent = [tool for tool in LANGUAGES[language].tools if shutil.which(tool) is None]
    return f"the client for {language} takes {', '.join(absent)}, not installed here" if absent else None


def make(language: str, directory: Path) -> Path:
    """Generate the client of a language and compile it with the example, and return the project's directory. What
    compilers have left there from the last time is used again."""
    how, project = LANGUAGES[language], directory / language
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copytree(EXAMPLES / language, project, dirs_exist_ok=True)
    shutil.rmtree(project / how.client, ignore_errors=True)
    how.generate(write_client_spec(directory), project / how.client)
    for command in how.build:
        _run(command, cwd=project)
    return project


def command_of(language: str) -> list[str]:
    """The command that runs the example, in the project's directory."""
    program, *arguments = LANGUAGES[language].run
    if program == "python":
        program = python_with("openapi-client", "pydantic>=2,<3", "python-dateutil", "typing-extensions", "urllib3")
    return [program, *arguments]


def _run(*parts: tuple[str, ...], cwd: Path | None = None) -> None:
    """Run a command at a low priority: compilers take whole machines. Raises RuntimeError with what it said."""
    command = ["nice", *(argument for part in parts for argument in part)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def main() -> None:
    skipped = {language: reason for language in LANGUAGES if (reason := missing(language))}
    for language in [language for language in LANGUAGES if language not in skipped]:
        print(f"{language}: {make(language, BUILD)}", flush=True)
    for language, reason in skipped.items():
        print(f"{language}: skipped, since {reason}")
    print(f"{len(LANGUAGES) - len(skipped)} made, {len(skipped)} skipped")


if __name__ == "__main__":
    main()
