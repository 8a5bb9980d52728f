"""Stage `second_captioner`: word maps of the example images by another captioner, `attention.captions.also`."""

import argparse
from pathlib import Path

from stages.attention import PICTURES
from stages.attention.caption_attention import measure_words, plot_caption
from stages.attention.examples import picture_path, select_examples
from stages.attention.greedy_caption import GreedyCaptioner
from stages.attention.word_referents import ReferentFinder
from stages.core.atomic import remove_folders
from stages.core.runs import RUNS, Run, package_versions, write_run
from stages.core.skipped import mark_skipped
from stages.core.stage import stage
from stages.data import manifest as manifests
from stages.data.images import read_image
from stages.data.manifest import Manifest
from stages.models import vit
from stages.params.experiment import Experiment, load_experiment

TASK = "second_captioner"


def find_skip_reason(experiment: Experiment, manifest: Manifest) -> str | None:
    """Why no second captioner is shown; None if one is."""
    kind = experiment.attention.captions.also
    if kind is None:
        return "no second captioner: attention.captions.also is null"
    if kind == experiment.captioning.model:
        return f"no second captioner: attention.captions.also and captioning.model are both {kind}"
    if experiment.captioner_source(kind) is None:
        return f"no second captioner: {experiment.profile}.{kind} is null"
    if not any(row.captions for row in manifest.rows):
        return f"no second captioner: {manifest.source} has no captions"
    return None


def analyze(experiment: Experiment, manifest: Manifest) -> Run:
    """Plot the example images, write the record."""
    params = experiment.attention.captions
    kind = params.also
    assert kind is not None  # else the stage is skipped
    greedy = GreedyCaptioner(experiment, kind)
    examples_param = f"{experiment.profile}.examples.captions"
    examples = select_examples(manifest.split("val"), experiment.active.examples.captions, examples_param)
    finder = ReferentFinder(manifest)
    captions = {}
    pictures = {}
    for row in examples:
        image = read_image(Path(row.image))
        caption, words = greedy.caption(image)
        measurements = measure_words(row, words, finder.find(row, words), finder.background) if row.mask else []
        picture = picture_path(PICTURES / TASK, row.image_id)
        plot_caption(picture, image, row.image_id, caption, words, measurements, params)
        captions[row.image_id] = caption
        pictures[row.image_id] = str(picture)
    run = Run(
        task=TASK,
        name=kind,
        stage=TASK,
        params={
            "profile": experiment.profile,
            "model": kind,
            "type": "greedy",
            "prompt": greedy.cell.prompt,
            "min_length": experiment.captioning.min_length,
            "max_length": experiment.captioning.max_length,
            "layer": params.layer,
            "head": params.head,
        },
        metrics={"images": len(examples)},
        inputs={
            "source": manifest.source,
            "manifest": manifests.manifest_hash(),
            "backbone": greedy.captioner.source,
            "weights": vit.weights_hash(greedy.captioner.decoder.model),
            "precision": experiment.compute.precision,
        },
        artifacts=pictures,
        versions=package_versions("torch", "transformers", "numpy", "pillow"),
        details={"captions": captions},
    )
    write_run(run)
    return run


def main() -> None:
    experiment = load_experiment()
    folders = (PICTURES / TASK, RUNS / TASK)
    remove_folders(*folders)
    manifest = manifests.read_manifest()
    reason = find_skip_reason(experiment, manifest)
    if reason:
        mark_skipped(reason, *folders)
        return
    analyze(experiment, manifest)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with stage(TASK):
        main()
