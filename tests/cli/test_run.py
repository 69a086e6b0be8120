from __future__ import annotations

import json
import os
import re
import signal
from base64 import b64decode
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from tests.helpers.commands import PICTURE, UNREADABLE, WITHOUT_LOGITS, left, only_line, real
from tests.helpers.nets import spot_classifier
from tests.helpers.paths import REAL_SLIDES
from tests.helpers.slides import write_svs
from wsi_saliency.heatmap import dicom
from wsi_saliency.heatmap.ome_zarr import Heatmap
from wsi_saliency.heatmap.result import Result
from wsi_saliency.models import loading
from wsi_saliency.report.slides import read_summary
from wsi_saliency.saliency.engine import Explainer
from wsi_saliency.urls import located
from wsi_saliency.workflows import journal


@pytest.mark.parametrize("command", ["evaluate", "render", "train-surrogate"])
def test_only_run_writes_to_a_url(call, slide, tmp_path, command):
    result = call(command, slide, "-o", "s3://me:secret@bucket/maps")
    assert result.exit_code == 2
    assert "'s3://bucket/maps' is a URL, and only run writes to URLs; name a folder" in result.stderr
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("url", "words"),
    [("nope://maps", "nobody knows nope:// URLs"), ("s3://bucket/../maps", "'..' cannot stand in a URL")],
)
def test_a_url_that_leads_nowhere_is_wrong_usage(call, slide, tmp_path, url, words):
    result = call("run", slide, "-o", url)
    assert result.exit_code == 2
    assert words in result.stderr
    assert left(tmp_path) == []


@pytest.mark.parametrize("how", [["--engine", "ray"], ["--slide-timeout", "9"], ["other.svs"]])
def test_memory_is_refused_where_other_processes_have_to_see_it(call, slide, how):
    write_svs(slide.with_name("other.svs"), [PICTURE])
    line = only_line(call("run", slide, *how, "-o", "memory://maps"))
    assert line.startswith(
        "memory://maps: other processes do not see memory:// URLs; give one slide, without"
    )


def test_a_folder_to_work_in_is_for_results_at_a_url(call, slide, tmp_path):
    result = call("run", slide, "-o", "maps", "--work", "work")
    assert result.exit_code == 2
    assert "--work is for results at a URL, and maps is a folder; leave it out" in result.stderr
    assert left(tmp_path) == []


@pytest.mark.usefixtures("spots")
def test_results_at_a_url_are_those_of_a_folder(call, slide, tmp_path):
    options = ["run", slide, "--device", "cpu", "--layer", "8", "--hotspots", "3"]
    assert call(*options, "-o", "maps").exit_code == 0
    url = f"memory://{tmp_path.name}/maps"
    at_url = [*options, "-o", url, "--work", "work"]
    assert f"slide.svs: 12 patches → {url}/slide\n" in call(*at_url, "--dry-run").stdout
    assert f"→ {url}/slide" in call(*at_url).stdout
    there = located(f"{url}/slide")
    expected = {str(p.relative_to("maps/slide")): p for p in Path("maps/slide").rglob("*") if p.is_file()}
    assert set(expected) == {str(p.relative_to(there)) for p in there.rglob("*") if p.is_file()}
    for name in set(expected) - {"run.json", "report.html", "overlay.groovy"}:  # times and places
        assert (there / name).read_bytes() == expected[name].read_bytes(), name
    packed = re.findall(r"^ *'([A-Za-z0-9+/=]+)',$", (there / "overlay.groovy").read_text(), re.MULTILINE)
    assert json.loads(b64decode("".join(packed)))["results"][0]["folder"] == f"{url}/slide"
    assert not Path("work").exists()
    assert f"kept {url}/slide, which has" in call(*at_url).stdout
    assert f"kept {url}/slide, which has" in call(*at_url, "--dry-run").stdout
    assert "added stage3.none.deeplift" in call(*at_url, "--method", "centred-hook,none").stdout
    assert len(json.loads((there / "run.json").read_bytes())["maps"]) == 2
    assert not Path("work").exists()


@pytest.mark.usefixtures("spots")
def test_a_place_that_takes_nothing_is_said_before_the_classifier_is_loaded(
    call, slide, s3_endpoint, tmp_path
):
    line = only_line(call("run", slide, "--model", "nix", "-o", "s3://nowhere/maps"))
    assert re.fullmatch(r"s3://nowhere/maps/\S+: cannot be written \(there is nothing .*-o", line)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layer", "nix"], ["no layer 'nix'", "stage3", "1/8", "--layer"]),
        (["--layer", "3"], ["no stage of the model lies at 1/3", "1/4", "1/8"]),
        (["--target", "nix"], ["no class 'nix'", "0: normal, 1: tumour", "--target"]),
        (["--target", "2"], ["no class '2'"]),
        (["--device", "nix"], ["unknown device 'nix'", "auto, cpu, cuda"]),
        (["--patch", "16", "--layer", "32"], ["--layer"]),
        (["-o", "slide.svs"], ["slide.svs: cannot be written (it is a file, not a folder)", "with -o"]),
        (["-o", "slide.svs/below"], ["slide.svs: cannot be written (it is a file, not a folder)", "-o"]),
        (["-o", "x" * 300], ["cannot be written (File name too long)", "-o"]),
    ],
    ids=lambda value: " ".join(value)[:30],
)
@pytest.mark.usefixtures("spots")
def test_what_does_not_fit_is_one_line_that_names_the_way_out(call, slide, tmp_path, arguments, words):
    line = only_line(call("run", slide, "--device", "cpu", *arguments))
    assert [word for word in words if word not in line] == []
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nix"], ["'nix' is not understood", "demo", "timm:NAME"]),
        (["--model", "timm:test_resnet"], ["--weights FILE"]),
        (["--model", "timm:test_resnet", "--weights", "none.pt"], ["none.pt does not exist"]),
        (["--model", "demo", "--weights", "none.pt"], ["demo brings its own weights"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_classifier_that_cannot_be_had(call, slide, tmp_path, arguments, words):
    line = only_line(call("run", slide, *arguments))
    assert [word for word in words if word not in line] == []
    assert left(tmp_path) == []


@pytest.mark.usefixtures("spots")
def test_a_folder_without_slides(call, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty: no slides in this folder" in only_line(call("run", "empty"))
    assert "empty/*.svs: no slides match this pattern" in only_line(call("run", "empty/*.svs"))


@pytest.mark.usefixtures("spots")
def test_an_unexpected_error_has_a_traceback_with_v_only(call, slide, tmp_path, monkeypatch):
    def broken(*args):
        raise IndexError("what a bug says")

    monkeypatch.setattr(Explainer, "__call__", broken)
    line = only_line(call("run", slide))
    assert "slide.svs: unexpected IndexError: what a bug says (run with -v for the traceback)" in line
    assert "Traceback" in call("run", slide, "-v").stderr
    assert left(tmp_path) == []


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.usefixtures("spots")
def test_an_interrupted_run_says_so_and_leaves_nothing(call, slide, tmp_path, monkeypatch, name, code):
    def interrupted(*args):
        signal.raise_signal(getattr(signal, name))

    monkeypatch.setattr(Explainer, "__call__", interrupted)
    result = call("run", slide)
    assert result.exit_code == code
    assert result.stderr == "Interrupted; nothing unfinished was left behind.\n"
    assert list(tmp_path.iterdir()) == [slide]


@pytest.mark.usefixtures("spots")
def test_a_signal_whose_exception_is_lost_ends_the_run_all_the_same(call, slide, tmp_path, monkeypatch):
    """Python drops what is raised in callbacks of the garbage collector."""
    explain = Explainer.__call__

    def losing(*args):
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        return explain(*args)

    monkeypatch.setattr(Explainer, "__call__", losing)
    assert call("run", slide, "--device", "cpu").exit_code == 143
    assert list(tmp_path.iterdir()) == [slide]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.usefixtures("spots")
def test_an_interrupted_run_says_that_the_same_command_goes_on(call, slide, tmp_path, monkeypatch, overwrite):
    """The next run explains the other patches only."""
    for name, value in (("SHORTEST", 0.0), ("COST", 1e9), ("QUICK", 1e9)):
        monkeypatch.setattr(journal, name, value)
    explain, calls = Explainer.__call__, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGTERM)
        return explain(*args)

    monkeypatch.setattr(Explainer, "__call__", interrupted)
    command = ["run", slide, "--device", "cpu", "--batch", "2"]
    first = call(*command, *(["--overwrite"] if overwrite else []))
    assert first.exit_code == 143
    how = ", without --overwrite," if overwrite else ""
    assert first.stderr == f"Interrupted; the same command{how} goes on with 1 slide that is half done.\n"
    assert not (tmp_path / "saliency" / "slide").exists()
    second = call(*command)
    assert second.exit_code == 0
    assert "goes on where an earlier run has ended, 8 of " in second.stderr
    record = json.loads((tmp_path / "saliency" / "slide" / "run.json").read_text())
    assert record["resumed"] == 1
    assert len(calls) - 5 == -(-(record["patches"]["tissue"] - 8) // 2)
    assert not [name for name in os.listdir(tmp_path / "saliency") if name.startswith(".")]


@pytest.mark.usefixtures("spots")
def test_a_run_says_one_line_a_slide_and_quiet_says_nothing(call, slide, tmp_path):
    first = call("run", slide, "--device", "cpu")
    assert (first.exit_code, first.stderr) == (0, "")
    (line,) = first.stdout.splitlines()
    patches = json.loads((tmp_path / "saliency" / "slide" / "run.json").read_text())["patches"]
    counts = f"{patches['tissue']} of {patches['grid']} patches explained"
    assert line.startswith(f"{slide}: {counts} in ")
    assert line.endswith(f"→ {Path('saliency/slide')}")
    quiet = call("run", slide, "--quiet", "--overwrite", "--device", "cpu")
    assert (quiet.exit_code, quiet.output) == (0, "")


@pytest.mark.usefixtures("spots")
def test_a_complete_result_is_kept_and_the_run_says_so(call, slide):
    call("run", slide, "--device", "cpu")
    kept = f"{slide}: kept {Path('saliency/slide')}, which has stage4.centred-hook.deeplift"
    again = call("run", slide, "--workers", "2")
    assert again.stdout == f"{kept}; --overwrite replaces it\n"
    other = call("run", slide, "--layer", "8", "--target", "0", "--overlap", "0.25")
    made = "made with overlap 0.5 (now 0.25), target tumour (now 0)"
    assert (other.stdout, other.stderr) == ("", f"WARNING: {kept}, {made}; --overwrite replaces it\n")
    assert (again.exit_code, other.exit_code) == (0, 0)


@pytest.mark.usefixtures("spots")
def test_lists_make_several_maps_of_all_targets(call, slide, tmp_path):
    lists = [
        "--layer",
        "4,8",
        "--target",
        "all",
        "--method",
        "none, centred-hook",
        "--attribution",
        "gradient",
    ]
    result = call("run", slide, "--device", "cpu", *lists)
    assert (result.exit_code, result.stderr) == (0, "")
    found = Result.read(tmp_path / "saliency" / "slide")
    assert {found.spec.name for found in found.maps} == {
        f"{layer}.{method}.gradient" for layer in ("stage2", "stage3") for method in ("none", "centred-hook")
    }
    assert found.targets == ("normal", "tumour")
    assert found.record["settings"]["targets"] == ["all"]


@pytest.mark.usefixtures("spots")
def test_what_is_added_and_what_is_kept_is_said(call, slide):
    call("run", slide, "--device", "cpu", "--target", "all")
    added = call("run", slide, "--target", "all", "--layer", "8,16", "--method", "none")
    assert (added.exit_code, added.stderr) == (0, "")
    first, *new = "stage4.centred-hook.deeplift", "stage3.none.deeplift", "stage4.none.deeplift"
    assert re.fullmatch(
        rf"{slide}: \d+ of \d+ patches explained in \d+ s; added {', '.join(new)} → saliency/slide\n",
        added.stdout,
    )
    for arguments in (["--layer", "8", "--method", "none"], ["--layer", "stage4"]):
        kept = call("run", slide, "--target", "all", *arguments)
        names = ", ".join([first, *new])
        said = f"{slide}: kept saliency/slide, which has {names}; --overwrite replaces it\n"
        assert (kept.exit_code, kept.stdout) == (0, said)
    refused = call("run", slide, "--target", "all", "--layer", "32")
    made = "made with patches 48 px apart, which does not suit the new layers (now 32)"
    assert f"which has {', '.join([first, *new])}, {made}; --overwrite" in refused.stderr


@pytest.mark.usefixtures("spots")
def test_a_result_of_an_older_version_is_kept_and_the_run_says_so(call, slide, tmp_path):
    call("run", slide, "--device", "cpu")
    path = tmp_path / "saliency" / "slide" / "run.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "schema"}))
    kept = call("run", slide, "--layer", "8")
    words = ", of another version of the program; --overwrite replaces it"
    assert (kept.exit_code, kept.stderr) == (0, f"WARNING: {slide}: kept saliency/slide{words}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "none,nix"], "'nix' is not one of none, backward-hook"),
        (["--attribution", "gradient,nix"], "'nix' is not one of gradient, "),
        (["--method", ","], "',' has no name in it"),
        (["--attribution", ""], "'' has no name in it"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("spots")
def test_lists_with_what_is_no_choice_are_wrong_usage(call, slide, tmp_path, arguments, words):
    result = call("run", slide, *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert left(tmp_path) == []


@pytest.mark.usefixtures("spots")
def test_options_reach_the_record(call, slide, tmp_path):
    arguments = ["--mpp", "0.4", "--overlap", "0.25", "--layer", "16", "--target", "0", "--patch", "128"]
    arguments += ["--attribution", "gradient-x-activation", "--method", "none", "--ome-zarr", "0.5"]
    arguments += ["--tissue-threshold", "0.2", "--batch", "2", "--workers", "1", "--device", "cpu"]
    result = call("run", slide, "-o", "maps", "--range", "-0.5,2", *arguments)
    assert result.exit_code == 0, result.output
    settings = json.loads((tmp_path / "maps" / "slide" / "run.json").read_text())["settings"]
    given = {
        name.removeprefix("--").replace("-", "_"): v
        for name, v in zip(arguments[::2], arguments[1::2], strict=True)
    }
    several = {name: given.pop(name) for name in ("layer", "target", "attribution", "method")}
    assert {name: settings[f"{name}s"] for name in several} == {name: [v] for name, v in several.items()}
    assert {name: str(settings[name]) for name in given} == given
    assert settings["range"] == [-0.5, 2.0]
    assert (tmp_path / "maps" / "slide" / "saliency.ome.zarr" / "zarr.json").is_file()


@pytest.mark.usefixtures("spots")
def test_a_bad_slide_among_others_is_named_at_the_end(call, tmp_path):
    for name in ("a.svs", "sub/c.svs"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write_svs(tmp_path / "in" / name, [PICTURE])
    (tmp_path / "in" / "b.svs").write_text("no slide")
    for slides in (["in"], ["in/**/*.svs"], ["in/a.svs", "in/b.svs", "missing.svs", "in/sub/c.svs"]):
        result = call("run", *slides, "-o", "out", "--device", "cpu", "--overwrite")
        assert result.exit_code == 1
        bad = [line for line in result.stderr.splitlines() if line.startswith("  ")]
        n, failed = len(bad), "missing.svs" in slides
        assert n == 1 + failed
        assert f"Error: {n} of {3 + failed} slides failed:" in result.stderr
        assert bad[0].startswith("  in/b.svs: ")
        assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["in/a.svs", "in/sub/c.svs"]
        c = "c" if failed else "sub/c"
        assert {p.parent.relative_to(tmp_path / "out").as_posix() for p in tmp_path.rglob("run.json")} >= {
            "a",
            c,
        }
        assert not (tmp_path / "out" / "b").exists()


@pytest.mark.usefixtures("spots")
def test_a_single_slide_that_is_a_part_of_many_is_in_the_table(call, tmp_path):
    (tmp_path / "in").mkdir()
    for name in "ab":
        write_svs(tmp_path / "in" / f"{name}.svs", [PICTURE])
    parts = [call("run", "in", "-o", "out", "--shard", f"{i}/5", "--device", "cpu") for i in range(1, 6)]
    assert [part.exit_code for part in parts] == [0] * 5
    lines = [line.split(":")[0] for part in parts for line in part.stdout.splitlines()]
    assert sorted(lines)[:2] == ["in/a.svs", "in/b.svs"]
    assert {f"none of the 2 slides is in part {i}/5 (--shard)" for i in range(1, 6)} >= set(sorted(lines)[2:])
    assert [row.folder for row in read_summary(tmp_path / "out")] == ["a", "b"]


@pytest.mark.usefixtures("spots")
def test_the_slides_of_a_list_and_some_of_them(call, tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abc":
        write_svs(tmp_path / "in" / f"{name}.svs", [PICTURE], mpp=None, power=None)
    (tmp_path / "list.csv").write_text("path,mpp\nin/a.svs,0.5\nin/b.svs,1\nin/c.svs,0.5\n")
    result = call("run", "list.csv", "--limit", "2", "--device", "cpu")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["in/a.svs", "in/b.svs"]
    record = json.loads((tmp_path / "saliency" / "in" / "b" / "run.json").read_text())
    assert record["slide"]["mpp"]["x"] == 1
    again = call("run", "list.csv", "--limit", "2", "--device", "cpu")
    assert [" kept " in line and "made with" not in line for line in again.stdout.splitlines()] == [
        True,
        True,
    ]
    (tmp_path / "list.csv").write_text("path,mpp\nin/a.svs,no\n")
    assert only_line(call("run", "list.csv")) == "list.csv: line 2: mpp 'no' is not a number above 0"


@pytest.mark.usefixtures("spots")
def test_what_the_classifier_notes_is_said_once(call, tmp_path, monkeypatch):
    noted = replace(spot_classifier(64), notes=("for tests only",))
    monkeypatch.setattr(loading, "_load", lambda uri, weights: noted)
    for name in "ab":
        write_svs(tmp_path / f"{name}.svs", [PICTURE])
    arguments = ["run", "a.svs", "b.svs", "--model", "noted", "--overlap", "0", "--overwrite"]
    assert call(*arguments).stderr == "WARNING: noted: for tests only\n"
    assert call(*arguments, "--quiet").stderr == ""


@real
def test_a_real_slide_with_the_demo_classifier(call, tmp_path):
    slide = REAL_SLIDES / "cmu-1-small-region.svs"
    result = call("run", slide, "--model", "demo", "--overlap", "0", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("no medical meaning") == 1
    folder = tmp_path / "saliency" / "cmu-1-small-region"
    record = json.loads((folder / "run.json").read_text())
    assert record["slide"]["mpp"] == {"x": 0.499, "y": 0.499}
    assert 30 < record["patches"]["tissue"] < record["patches"]["grid"] == 10 * 14
    values = Heatmap.open(folder / "saliency.ome.zarr").read(0)
    assert 0.2 < (values != 0).mean() < 0.7


@real
@pytest.mark.usefixtures("spots")
def test_a_real_dicom_slide(call, tmp_path):
    result = call("run", REAL_SLIDES / "jpeg.dicom", "--overlap", "0", "--device", "cpu")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "saliency" / "jpeg" / "run.json").read_text())
    assert record["slide"]["format"] == "dicom"


@real
@pytest.mark.usefixtures("spots")
def test_the_map_of_a_real_dicom_slide_is_of_its_study(call, tmp_path):
    source = REAL_SLIDES / "jpeg.dicom"
    result = call("run", source, "--overlap", "0", "--device", "cpu", "--export", "dicom")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "saliency" / "jpeg"
    of_slide, of_map = (pydicom.dcmread(path) for path in (source, folder / "saliency.dcm"))
    for name in ("StudyInstanceUID", "FrameOfReferenceUID"):
        assert of_map[name].value == of_slide[name].value
    assert of_map.SourceImageSequence[0].ReferencedSOPInstanceUID == of_slide.SOPInstanceUID
    cells = json.loads((folder / "run.json").read_text())["maps"][0]["placement"]["cells"]
    assert (of_map.TotalPixelMatrixColumns, of_map.TotalPixelMatrixRows) == (cells["w"], cells["h"])


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
@pytest.mark.usefixtures("spots")
def test_a_package_that_an_export_lacks_ends_the_run_with_one_line(call, tmp_path, monkeypatch, names):
    monkeypatch.setattr(dicom, "find_spec", lambda name: None)
    for name in names:
        write_svs(tmp_path / f"{name}.svs", [PICTURE])
    slides = [f"{name}.svs" for name in names]
    line = only_line(call("run", *slides, "--export", "dicom", "--device", "cpu"))
    assert line.startswith("--export dicom needs highdicom")
    assert not list(tmp_path.rglob("run.json"))


@real
@pytest.mark.usefixtures("spots")
def test_a_real_slide_that_is_cut_off(call, tmp_path):
    whole = (REAL_SLIDES / "cmu-1-small-region.svs").read_bytes()
    (tmp_path / "cut.svs").write_bytes(whole[: len(whole) * 6 // 10])
    assert "cut.svs" in only_line(call("run", "cut.svs"))
    assert left(tmp_path) == []


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.usefixtures("spots")
def test_a_slide_that_cannot_be_read_is_one_line_that_names_it(call, tmp_path, name):
    make, reason = UNREADABLE[name]
    make(tmp_path / name)
    line = only_line(call("run", tmp_path / name))
    assert name in line
    assert reason in line
    assert left(tmp_path) == []


@pytest.mark.usefixtures("spots")
def test_a_slide_without_mpp_is_one_line_that_names_the_option(call, tmp_path):
    slide = write_svs(tmp_path / "without.svs", [PICTURE], mpp=None, power=None)
    line = only_line(call("run", slide))
    assert "without.svs" in line
    assert "give it with --mpp" in line
    assert left(tmp_path) == []


@pytest.mark.parametrize("module", WITHOUT_LOGITS)
def test_a_classifier_without_logits(call, slide, tmp_path, monkeypatch, module):
    monkeypatch.setattr(loading, "_load", lambda *_: replace(spot_classifier(64), module=module()))
    line = only_line(call("run", slide))
    assert "spots" in line
    assert "logits (N, K)" in line
    assert left(tmp_path) == []


@real
@pytest.mark.usefixtures("spots")
def test_a_real_slide_without_mpp_stops(call):
    assert "give it with --mpp" in only_line(call("run", REAL_SLIDES / "tumor_001aaf.tif"))


@real
@pytest.mark.usefixtures("spots")
def test_a_real_slide_that_breaks_when_it_is_read(call, tmp_path):
    line = only_line(call("run", REAL_SLIDES / "unreadable.svs"))
    assert "unreadable.svs: cannot read the region x=0, y=0, " in line
    assert left(tmp_path) == []
