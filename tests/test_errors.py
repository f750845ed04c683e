"""Test how messages are spelled in Python, so that their advice can be pasted."""

import ast
import shlex

import pytest

import jaxlab
from jaxlab.errors import JaxlabError, UsageError, help_of, in_python


@pytest.mark.parametrize(
    "folder",
    ["runs/a", "my runs/b", "it's", 'the "best"', "ein-–_%@x", "a'b\"c", "my --out x"],
)
def test_the_advice_to_resume_is_a_call_that_can_be_pasted(folder):
    text = f"stopped; to continue, pass --resume --out {shlex.quote(folder)}"
    said = in_python(text)
    assert said.startswith("stopped; to continue, pass jaxlab.fine_tune(")
    call = ast.parse(said.partition("pass ")[2], mode="eval").body
    arguments = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
    assert arguments == {"resume": "last", "out": folder}


def test_a_resumed_run_is_spelled_as_in_python():
    text = "stopped; to continue, pass --resume --out runs/a"
    assert in_python(text) == (
        'stopped; to continue, pass jaxlab.fine_tune(resume="last", out="runs/a")'
    )
    assert in_python("pass --resume without a step for the latest intact one") == (
        "pass resume='last' for the latest intact one"
    )
    assert in_python("or pass an earlier step to --resume") == (
        "or pass an earlier step to resume"
    )
    assert in_python("--resume: no run is given") == "resume: no run is given"


HELP = {
    "Config": lambda: jaxlab.Config(optimizer="xyzzy"),
    "fine_tune": lambda: jaxlab.fine_tune(xyzzy=1),
    "fit": lambda: jaxlab.fit(jaxlab.MLP(), None, xyzzy=1),
    "create_model": lambda: jaxlab.create_model("xyzzy"),
    "create_model weights": lambda: jaxlab.create_model("alexnet", weights="xyzzy"),
    "load_data": lambda: jaxlab.load_data("xyzzy"),
}


@pytest.mark.parametrize("case", HELP)
def test_the_help_that_is_named_is_the_function_s_own(case, monkeypatch):
    monkeypatch.setattr("jaxlab.data.tfds_builder.known_names", lambda: {"mnist"})
    with pytest.raises(JaxlabError) as raised:
        HELP[case]()
    # The other settings of fine_tune are documented by Config.
    name = case.split()[0].replace("fine_tune", "Config")
    assert str(raised.value).endswith(f"; see help(jaxlab.{name})")
    assert raised.value.text.endswith("; see --help")


def test_the_innermost_function_names_its_help():
    @help_of("outer")
    def outer():
        with help_of("inner"):
            raise UsageError("--a: odd; see --help")

    with pytest.raises(UsageError, match=r"a: odd; see help\(jaxlab.inner\)"):
        outer()
