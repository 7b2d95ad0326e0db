"""README and the site: examples run, commands and links exist, generated parts are up to date, the site builds."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import soundfile

from export.bundle import finish_bundle
from hbaf_edge import HBAFRuntime
from hbaf_edge.bundle import DEFAULT, load_bundle
from tests.conftest import EXAMPLES, ROOT
from tests.hbaf_edge.test_sign import write_key_pair

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
CLIP = EXAMPLES / "turn4_anna.flac"
SYSTEM = {"openssl", "sudo", "sha256sum", ".ci/run"}  # commands that are not tested here


def blocks(page, language):
    """Return the fenced code blocks of one language, including indented ones."""
    text = page.read_text(encoding="utf-8")
    pattern = rf"^( *)```{language}\n(.*?)^\1```"
    return [match[2] for match in re.finditer(pattern, text, re.DOTALL | re.MULTILINE)]


def import_script(name):
    """Import a script of docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


class Microphone:
    """Passes a clip in chunks to the callback that is assigned to `on_samples`."""

    def __setattr__(self, name, callback):
        assert name == "on_samples"
        for chunk in soundfile.blocks(CLIP, 960, dtype="float32"):
            callback(chunk)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.stem)
def test_python_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    soundfile.write("hello.wav", *soundfile.read(CLIP))
    recogniser = SimpleNamespace(result=lambda: "I am so glad that you are here!")
    namespace = {"microphone": Microphone(), "recogniser": recogniser}
    if page.stem == "calibration":
        namespace["HBAFRuntime"] = HBAFRuntime
        sign_default_bundle(tmp_path)
    for block in blocks(page, "python"):
        exec(block, namespace)
    if page.stem != "calibration":
        assert capsys.readouterr().out.strip(), "an example shows its result"


def sign_default_bundle(folder):
    """What the commands before calibration.md's Python block make: a signed bundle and its public key."""
    private, public = write_key_pair(folder, "signer")
    finish_bundle(DEFAULT, folder / "bundle", key=private, zipped=True)
    public.rename(folder / "public.pem")


def commands():
    """Yield the arguments of every line of a shell block."""
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                command = shlex.split(line, comments=True)
                if command:
                    yield pytest.param(command, id=f"{page.stem}: {' '.join(command)}"[:80])


@pytest.mark.parametrize("command", commands())
def test_a_command_of_a_page_exists_with_its_options(command, help_of):
    program, *arguments = command
    if program == "torchrun":
        program, arguments = "python", arguments[arguments.index("-m") :]
    if program == "pip":
        check_extras(arguments)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {a for a in arguments if "=" not in a} <= set(targets)
    elif program == "python":
        assert arguments[0] == "-m" or (ROOT / arguments[0]).exists()
        check_options(arguments[2:], help_of("-m", arguments[1]) if arguments[0] == "-m" else "")
    elif program == "hbaf-edge":
        check_options(arguments[1:], help_of("-m", "hbaf_edge", arguments[0]))
    else:
        assert program in SYSTEM


@pytest.fixture(scope="module")
def help_of():
    """A function that returns the help text of a command and caches it."""
    texts = {}

    def get(*command):
        if command[1] in ("build", "mkdocs"):
            return " ".join(command)
        if command not in texts:
            process = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True)
            assert process.returncode == 0, process.stderr
            texts[command] = process.stdout
        return texts[command]

    return get


def check_options(arguments, text):
    options = text[text.rfind("Options:") :]  # not the examples above them
    for option in (a for a in arguments if a.startswith("--")):
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", options), f"{option} is not an option"


def check_extras(arguments):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for argument in arguments:
        names = re.search(r"\[([\w,]+)\]", argument)
        assert not names or set(names[1].split(",")) <= set(extras)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_linked_files_exist_and_json_blocks_are_valid(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    for block in blocks(page, "json"):
        for line in block.splitlines():
            json.loads(line)


def test_the_list_of_messages_is_up_to_date():
    messages = import_script("messages")
    assert messages.PAGE.read_text(encoding="utf-8") == messages.page(), "run python docs/messages.py"


def test_the_picture_was_drawn_with_the_default_bundle():
    image = pytest.importorskip("PIL.Image")
    key = image.open(ROOT / "docs" / "how_it_works.png").info["Description"]
    assert key == f"bundle {load_bundle().key}", "run python docs/how_it_works.py"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 140


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    assert len(list((tmp_path / "site").rglob("index.html"))) >= 14
