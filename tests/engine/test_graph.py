"""Exported graphs predict and are measured as their models are, in each runtime, without torch."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys

import h5py
import numpy as np
import onnx
import pytest
from conftest import fgvc
from safetensors.torch import save
from test_export import CLASSES, checkpoint_of

from fgvc_cli.aviary.dataset import SPECIES, render_bird
from fgvc_cli.engine.export import FORMATS, describe, quantize, trace
from fgvc_cli.engine.graph import Graph, GraphForward, pick_runtime
from fgvc_cli.errors import FgvcError
from fgvc_cli.evaluate.confidence import Calibration
from fgvc_cli.models.weights import CHECKPOINT_KEY
from fgvc_cli.predict.predictor import Predictor
from fgvc_cli.sources.find import find_images

RUNTIMES = [
    "onnxruntime",
    pytest.param(
        "openvino",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("openvino") is None, reason="needs openvino, which is not installed"
        ),
    ),
]


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """Ten images of two sizes."""
    folder = tmp_path_factory.mktemp("birds")
    rng = np.random.default_rng(0)
    for i in range(10):
        image = render_bird(SPECIES[i % len(SPECIES)], rng).image
        image.crop((0, 0, image.width, image.height - 60 * (i % 2))).save(folder / f"{i}.png")
    return folder


def write_graph(checkpoint, path):
    program = trace(checkpoint, "uint8")
    with path.open("wb") as stream:
        FORMATS[".onnx"].write(program, describe(checkpoint, "uint8", program), stream)
    return path


@pytest.fixture(scope="module", params=["crasmra-resnet10t", "vitms"])
def exported(request, tmp_path_factory):
    """A checkpoint with a temperature, and its graph."""
    checkpoint = checkpoint_of(request.param)
    return checkpoint, write_graph(checkpoint, tmp_path_factory.mktemp("graph") / "model.onnx")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The graph of a network without a second stage, and its checkpoint."""
    checkpoint = checkpoint_of("timm-resnet10t")
    return checkpoint, write_graph(checkpoint, tmp_path_factory.mktemp("plain") / "model.onnx")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_graph_predicts_what_its_model_does(exported, birds, runtime):
    checkpoint, path = exported
    options = {"workers": 0, "device": "cpu", "batch_size": 4, "extras": ("attention", "logits")}
    own, other = Predictor(checkpoint, **options), Predictor(path, runtime=runtime, **options)
    assert other.info.classes == own.info.classes and other.info.parts == own.info.parts
    assert other.info.settings["options"] == own.info.settings["options"]
    assert other.info.settings["runtime"].startswith(f"{runtime} ")
    assert other.info.settings["precision"] == "float32"
    assert other.info.weights_sha256 != own.info.weights_sha256
    blocks = [[*predictor.blocks(find_images([birds]))] for predictor in (own, other)]
    assert [len(block) for block in blocks[0]] == [4, 4, 2]
    for expected, found in zip(*blocks, strict=True):
        assert (found.path, found.status) == (expected.path, ["ok"] * len(found))
        np.testing.assert_array_equal(found.size, expected.size)
        np.testing.assert_array_equal(found.topk_index, expected.topk_index)
        np.testing.assert_allclose(found.topk_prob, expected.topk_prob, atol=1e-4)
        np.testing.assert_allclose(found.box, expected.box, atol=0.5)
        np.testing.assert_allclose(found.parts, expected.parts, atol=0.5)
        np.testing.assert_allclose(found.attention, expected.attention, atol=2e-3)
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-3)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_torch_is_imported(plain, birds, runtime):
    code = f"""
import sys
sys.argv = ["fgvc", "predict", {str(birds / "0.png")!r}]
sys.argv += ["--weights", {str(plain[1])!r}, "--runtime", {runtime!r}]
from fgvc_cli.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print([name for name in ("torch", "torchvision", "timm", "sympy", "scipy", "onnx") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    header, row, loaded = done.stdout.splitlines()
    assert row.startswith(f"{birds}/0.png,ok") and header.startswith("path,status")
    assert loaded == "[]"


def test_processes_that_decode_import_no_torch():
    code = "import sys, fgvc_cli.predict.decoding; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_run_records_its_runtime_and_takes_no_other(plain, birds, tmp_path):
    pytest.importorskip("openvino")
    out = tmp_path / "rows.h5"
    half = ("predict", birds, "--weights", plain[1], "--out", out, "--maps", "--shard", "0/2", "--workers", 0)
    assert fgvc(*half, "--runtime", "onnxruntime").exit_code == 0
    refused = fgvc(*half, "--runtime", "openvino")
    assert refused.exit_code == 1 and "runtime" in refused.stderr
    assert fgvc(*half[:-3], "1/2", "--runtime", "onnxruntime").exit_code == 0
    assert fgvc("merge", out).exit_code == 0
    with h5py.File(out) as file:
        settings = json.loads(file.attrs["settings"])
        assert settings["runtime"].startswith("onnxruntime ") and settings["exported_from"] == "5" * 64
        assert file["attention"].shape[0] == 10 and file["status"][:].tolist() == [b"ok"] * 10


def test_several_processes_predict_with_one_graph(plain, birds, tmp_path):
    out, one = tmp_path / "several.csv", tmp_path / "one.csv"
    shared = ("predict", birds, "--weights", plain[1], "--runtime", "onnxruntime", "--workers", 0)
    assert fgvc(*shared, "--devices", 2, "--out", out).exit_code == 0
    assert fgvc(*shared, "--out", one).exit_code == 0
    assert out.read_text() == one.read_text()
    refused = fgvc(*shared, "--devices", 2, "--device", "cuda", "--out", tmp_path / "no.csv")
    assert refused.exit_code == 2 and "--devices with --device cuda" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--stages", "main"], "--stages is not for an exported graph"),
        (["--cascade", "0.9"], "--cascade is not for an exported graph"),
        (["--compile"], "--compile is not for an exported graph"),
        (["--embeddings", "--out", "x.h5"], "--embeddings is not for an exported graph"),
        (["--amp", "bf16"], "onnxruntime computes model.onnx in float32"),
        (["--device", "cuda"], "--device cuda: this onnxruntime computes on the CPU alone"),
    ],
)
def test_what_a_graph_has_not_is_refused_in_one_line(plain, birds, arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = fgvc("predict", birds, "--weights", plain[1], "--runtime", "onnxruntime", *arguments)
    assert result.exit_code in (1, 2) and says in result.stderr
    assert result.stderr.strip().count("\n") == 0 and not [*tmp_path.iterdir()]


def test_a_runtime_is_for_graphs_and_other_commands_want_the_model(plain, birds):
    refused = fgvc("predict", birds, "--weights", "aviary", "--runtime", "onnxruntime")
    assert refused.exit_code == 2 and "--runtime onnxruntime is for exported graphs" in refused.stderr
    refused = fgvc("eval", "--weights", "aviary", "--runtime", "onnxruntime")
    assert refused.exit_code == 2 and "--runtime onnxruntime is for exported graphs" in refused.stderr
    refused = fgvc("explain", birds, "--weights", plain[1])
    assert refused.exit_code == 2 and "only fgvc predict and fgvc eval run exported graphs" in refused.stderr


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_other_files_are_refused(plain, tmp_path, runtime):
    with pytest.raises(FgvcError, match="no such file"):
        Graph(tmp_path / "none.onnx", runtime=runtime)
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(plain[1].read_bytes()[:1000])
    with pytest.raises(FgvcError, match=f"cut.onnx cannot be opened, {runtime} says"):
        Graph(cut, runtime=runtime)
    foreign = onnx.load(plain[1])
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(FgvcError, match="was not written by fgvc export"):
        Graph(tmp_path / "foreign.onnx", runtime=runtime)


def test_openvino_is_taken_on_a_cpu_where_it_is_installed(monkeypatch):
    there = {"openvino", "onnxruntime"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in there else None)
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: iter(()))
    assert pick_runtime("auto", "auto") == pick_runtime("auto", "cpu") == "openvino"
    assert pick_runtime("auto", "cuda:0") == "onnxruntime"
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: iter([name]))
    assert pick_runtime("auto", "auto") == "onnxruntime" and pick_runtime("auto", "cpu") == "openvino"
    there.remove("openvino")
    assert pick_runtime("auto", "cpu") == "onnxruntime"
    with pytest.raises(FgvcError, match="needs openvino") as refused:
        pick_runtime("openvino", "cpu")
    assert refused.value.hint == "pip install 'fgvc[openvino]'"


def test_bfloat16_is_a_hint_to_openvino_and_recorded(plain, birds):
    pytest.importorskip("openvino")
    if not Graph(plain[1], runtime="openvino").has_bf16:
        with pytest.raises(FgvcError, match="--amp bf16"):
            Predictor(plain[1], runtime="openvino", amp="bf16")
        return
    rows = {}
    for amp, precision in (("none", "float32"), ("bf16", "bf16")):
        predictor = Predictor(plain[1], runtime="openvino", amp=amp, workers=0)
        assert predictor.info.settings["precision"] == precision
        rows[amp] = np.array([row.probs for row in predictor.predict(birds)])
    assert 0 < np.abs(rows["none"] - rows["bf16"]).max() < 0.1


def test_the_probe_chooses_between_the_precisions_of_openvino(plain, monkeypatch):
    pytest.importorskip("openvino")
    graph, tried, told = Graph(plain[1], runtime="openvino"), [], []
    graph.has_bf16 = True
    assert graph.choose_precision("auto", tried.append, told.append, probe=False) == "float32"
    monkeypatch.setattr("fgvc_cli.engine.device._gain", lambda run: [run("bf16"), 1.3][1])
    assert graph.choose_precision("auto", tried.append, told.append, probe=True) == "bf16"
    assert tried == ["bf16"] and "1.30 times as fast" in told[-1]
    assert graph.choose_precision("none", tried.append, told.append, probe=True) == "float32"


def test_out_of_memory_halves_the_batch_and_loses_no_image(plain, birds):
    told = []
    predictor = Predictor(plain[1], runtime="onnxruntime", batch_size=8, workers=0, on_event=told.append)
    expected = [row.probs for row in Predictor(plain[1], runtime="onnxruntime", workers=0).predict(birds)]
    graph = predictor._forward._graph
    run = graph._session.run

    def small(images, names, precision):
        if len(images) > 3:
            raise RuntimeError("bad allocation")
        return run(images, names, precision)

    graph._session.run = small
    rows = [*predictor.predict(birds)]
    assert np.array([row.probs for row in rows]) == pytest.approx(np.array(expected), abs=1e-5)
    assert predictor.batch_size == 2
    assert told[0] == "Out of memory with 8 images at once: going on with 4."
    graph._session.run = lambda *_: (_ for _ in ()).throw(MemoryError())
    assert {row.status for row in predictor.predict(birds)} == {"no_memory"}
    graph._session.run = lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        [*predictor.predict(birds)]


def test_the_batch_size_is_measured(plain):
    told = []
    predictor = Predictor(plain[1], runtime="onnxruntime", batch_size="auto", on_event=told.append)
    assert predictor.batch_size in (1, 2, 4, 8, 16, 32) and "fastest in a short probe" in told[-1]
    assert isinstance(predictor._forward, GraphForward)
    assert predictor.info.settings["batch_size"] == predictor.batch_size


@pytest.fixture
def labelled(birds, tmp_path):
    """The images in folders of the classes, and a checkpoint file of the plain network."""
    for i, path in enumerate(sorted(birds.iterdir())):
        folder = tmp_path / "data" / CLASSES[i % len(CLASSES)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    return tmp_path / "data"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_graph_is_measured_as_its_model_is(plain, labelled, tmp_path, runtime):
    checkpoint, path = plain
    weights = tmp_path / "model.safetensors"
    document = {
        "format": 1,
        "fgvc_version": "0",
        "model": checkpoint.name,
        "options": checkpoint.model.config.model_dump(),
        "classes": CLASSES,
        "preprocess": checkpoint.preprocess.model_dump(),
        "config": {"data": None, "dataset": None},
        "calibration": dataclasses.asdict(Calibration(1.5, "val", 600)),
    }
    weights.write_bytes(save(checkpoint.model.state_dict(), metadata={CHECKPOINT_KEY: json.dumps(document)}))
    given = ("--data", labelled, "--device", "cpu", "--workers", 0, "--json")
    own, other = (
        json.loads(fgvc("eval", "--weights", name, *given, *more).stdout)
        for name, more in ((weights, ()), (path, ("--runtime", runtime)))
    )
    assert other["runtime"].startswith(f"{runtime} ") and own["runtime"] is None
    assert other["precision"] == own["precision"] == "float32"
    # What a graph was calibrated on it does not say.
    left_out = ("images_per_second", "nll_calibrated", "ece_calibrated")
    kept = [name for name in own["metrics"] if name not in left_out]
    assert {"top1", "nll", "ece"} <= {*kept}
    for name in kept:
        assert other["metrics"][name] == pytest.approx(own["metrics"][name], abs=1e-3), name
    against = fgvc("eval", "--weights", weights, "--against", path, *given, "--runtime", runtime)
    compared = json.loads(against.stdout)["against"]
    assert compared["difference"] == 0 and compared["only_first"] == compared["only_second"] == 0


def test_a_graph_is_not_calibrated(plain, labelled, tmp_path):
    given = ("eval", "--weights", plain[1], "--data", labelled)
    refused = fgvc(*given, "--split", "val", "--calibrate", tmp_path / "new.safetensors")
    assert refused.exit_code == 2 and "--calibrate is not for an exported graph" in refused.stderr
    refused = fgvc(*given, "--stages", "main")
    assert refused.exit_code == 2 and "--stages is not for an exported graph" in refused.stderr
    refused = fgvc("eval", "--weights", plain[1])
    assert refused.exit_code == 2 and "does not say what it was trained on" in refused.stderr


@pytest.mark.parametrize("name", ["crasmra-resnet10t", "vitms"])
def test_int8_quantises_layers_and_leaves_the_rest(name, exported, tmp_path):
    checkpoint, path = exported
    if checkpoint.name != name:
        pytest.skip("the graph of the other family")
    side = checkpoint.preprocess.input_px
    images = np.random.default_rng(0).integers(0, 256, (6, 3, side, side), np.uint8)
    target = tmp_path / "int8.onnx"
    target.write_bytes(quantize(path, iter([images[:3], images[3:]])))
    model = onnx.load(target)
    held = {prop.key: prop.value for prop in model.metadata_props}
    layers = json.loads(held["quantization"])["layers"]
    assert layers >= 8 and json.loads(held["class_names"]) == list(CLASSES)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    learned = sum(np.prod(t.dims) for t in model.graph.initializer if kinds[t.name] == onnx.TensorProto.INT8)
    # Of so small a ViT most weights are position embeddings, norms and what normalises and finds boxes.
    least = 0.7 if name == "crasmra-resnet10t" else 0.1
    assert learned > least * sum(p.numel() for p in checkpoint.model.parameters())
    logits = {o.name for o in model.graph.output if o.name.startswith("logits")}
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    assert "DequantizeLinear" not in {made_by[name] for name in logits}
    graph = Graph(target, runtime="onnxruntime")
    assert graph.int8 and graph.precision("auto") == "int8"
    exact = Graph(path, runtime="onnxruntime").run(images, ["probs"])["probs"]
    found = graph.run(images, ["probs"], "int8")["probs"]
    assert 0 < np.abs(found - exact).max() < 0.3
    if importlib.util.find_spec("openvino"):
        # Wrong where the batch is not fixed: three sizes.
        other = Graph(target, runtime="openvino")
        for count in (6, 1, 3):
            probs = other.run(images[:count], ["probs"], "int8")["probs"]
            assert np.abs(probs - exact[:count]).max() < 0.3
            np.testing.assert_allclose(probs, found[:count], atol=0.1)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_classes_that_can_occur_and_thresholds_go_with_a_graph(plain, birds, runtime):
    checkpoint, path = plain
    options = {"workers": 0, "device": "cpu", "classes": ["bee", "dog"], "thresholds": {"dog": 1.0}}
    own = [*Predictor(checkpoint, **options).predict(birds)]
    other = [*Predictor(path, runtime=runtime, **options).predict(birds)]
    assert {*own[0].labels} == {"bee", "dog"}
    for expected, found in zip(own, other, strict=True):
        assert (found.labels, found.status) == (expected.labels, expected.status)
        assert found.probs == pytest.approx(expected.probs, abs=1e-4)
    with pytest.raises(FgvcError, match="--unknown is not for an exported graph"):
        Predictor(path, runtime=runtime, unknown="on")


def test_export_int8_says_how_far_it_agrees(birds, tmp_path, monkeypatch):
    checkpoint = checkpoint_of("timm-resnet10t")
    monkeypatch.setattr("fgvc_cli.engine.export.open_weights", lambda weights, options=None: checkpoint)
    out = tmp_path / "int8.onnx"
    result = fgvc("export", "--weights", "aviary", "--out", out, "--int8", "--calibrate", birds)
    assert result.exit_code == 0, result.output
    assert "in int8 (ranges of 10 images), on 10 images" in result.stdout and "equal labels" in result.stdout
    predictor = Predictor(out, runtime="onnxruntime", workers=0)
    assert predictor.info.settings["precision"] == "int8"
    assert [row.status for row in predictor.predict(birds)] == ["ok"] * 10
    with pytest.raises(FgvcError, match="--amp bf16 is not for int8.onnx"):
        Predictor(out, runtime="onnxruntime", amp="bf16")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "model.onnx", "--int8"], "--int8 takes the ranges of its numbers from images"),
        (["--out", "model.onnx", "--calibrate", "photos"], "--calibrate is for --int8"),
        (
            ["--out", "model.pt2", "--int8", "--calibrate", "photos"],
            "--int8 got 'model.pt2', expected an .onnx",
        ),
    ],
)
def test_int8_needs_images_and_onnx(arguments, says):
    result = fgvc("export", *arguments)
    assert result.exit_code == 2 and says in result.stderr and result.stderr.count("\n") == 1


def test_a_graph_of_floats_takes_them(tmp_path, birds):
    checkpoint = checkpoint_of("timm-resnet10t")
    program, path = trace(checkpoint, "float"), tmp_path / "float.onnx"
    with path.open("wb") as stream:
        FORMATS[".onnx"].write(program, describe(checkpoint, "float", program), stream)
    expected = [*Predictor(checkpoint, workers=0, device="cpu").predict(birds)]
    for row, own in zip(Predictor(path, workers=0).predict(birds), expected, strict=True):
        assert row.probs == pytest.approx(own.probs, abs=1e-4)


def test_a_signal_arrives_after_another_thread_has_let_go_of_openvino(plain):
    """Its plugin gives signal handlers a stack, and took it away under their feet: Ctrl-C was a crash."""
    pytest.importorskip("openvino")
    code = (
        "import gc, signal, sys, threading, numpy as np\n"
        "from fgvc_cli.engine.graph import Graph\n"
        "held = [Graph(sys.argv[1], runtime='openvino')]\n"
        "px = held[0].preprocess.input_px\n"
        "held[0].run(np.zeros((1, 3, px, px), 'uint8'), held[0].outputs)\n"
        "def let_go():\n"
        "    held.clear(), gc.collect()\n"
        "thread = threading.Thread(target=let_go)\n"
        "thread.start(), thread.join()\n"
        "signal.signal(signal.SIGINT, lambda *_: print('arrived'))\n"
        "signal.raise_signal(signal.SIGINT)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(plain[1])], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "arrived\n"), ended.stderr
