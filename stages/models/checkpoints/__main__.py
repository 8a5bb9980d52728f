"""Stage `checkpoints`: the profile's models, downloaded and converted where they are not on this machine yet."""

from stages.core.stage import InputError, stage
from stages.models.checkpoints.record import KINDS, write_checkpoint
from stages.models.checkpoints.resolver import CheckpointResolver
from stages.params.experiment import Experiment, load_experiment
from stages.params.model_source import is_url
from stages.params.remote_file import RemoteFile


def requested_models(experiment: Experiment) -> dict[str, tuple[str, str | None]]:
    """The params' key and value of each kind of model; CATR is asked for by those who caption with it.

    Nor is a BLIP where there is nothing to caption.
    """
    active, name = experiment.active, experiment.profile
    catr = active.catr if experiment.captioning.model == "catr" else None
    if experiment.captioning.model == "catr" and catr is None:
        raise InputError(f"captioning.model = 'catr': {name}.catr names no checkpoint; only blip captions here")
    return {
        "backbone": (f"{name}.backbone", active.backbone),
        "blip": (f"{name}.blip", active.blip if experiment.has_captions else None),
        "classifier": (f"{name}.classifier.backbone", active.classifier.backbone),
        "catr": (f"{name}.catr", catr),
    }


def main() -> None:
    experiment = load_experiment()
    paper, asked = experiment.paper, requested_models(experiment)
    shelf = CheckpointResolver(paper.downloads, paper.vocabulary, paper.mirrors)  # whatever the profile
    bring = {"backbone": shelf.vit, "blip": shelf.blip, "classifier": shelf.vit, "catr": shelf.catr}
    for kind in KINDS:
        key, source = asked[kind]
        try:
            checkpoint = bring[kind](source) if source else None
        except (InputError, ValueError) as fault:
            raise InputError(f"{key} = '{source}': {fault}") from fault
        write_checkpoint(kind, checkpoint)
        if checkpoint:
            print(f"{kind}: {checkpoint.path} ({checkpoint.sha256[:12]})")
            if is_url(source) and RemoteFile.parse(source).digest is None:
                print(f"  to pin these bytes: {key} = {RemoteFile.parse(source).url}#sha256={checkpoint.sha256}")


if __name__ == "__main__":
    with stage("checkpoints"):
        main()
