"""Stage `checkpoints`: downloads and converts the models of the profile that are not on this machine yet."""

from stages.core.stage import InputError, stage
from stages.models.checkpoints.record import write_checkpoint
from stages.models.checkpoints.resolver import resolve_model
from stages.params.experiment import Experiment, load_experiment
from stages.params.model_source import is_url
from stages.params.remote_file import RemoteFile


def requested_models(experiment: Experiment) -> dict[str, tuple[str, str | None]]:
    """Return the param key and its value for each kind of model, None for one that the run does not need.

    BLIP is needed only with captions, CATR only if it captions, or if its word maps are drawn and the profile has one.
    """
    active = experiment.active
    profile = experiment.profile
    uses_catr = "catr" in (experiment.captioning.model, experiment.attention.captions.also)
    catr = active.catr if uses_catr else None
    if experiment.captioning.model == "catr" and catr is None:
        raise InputError(f"captioning.model = 'catr': {profile}.catr names no checkpoint; use 'blip' with this profile")
    return {
        "backbone": (f"{profile}.backbone", active.backbone),
        "blip": (f"{profile}.blip", active.blip if active.has_captions else None),
        "classifier": (f"{profile}.classifier.backbone", active.classifier.backbone),
        "catr": (f"{profile}.catr", catr if active.has_captions else None),
    }


def main() -> None:
    """Resolve each model and write its record."""
    experiment = load_experiment()
    for kind, (key, source) in requested_models(experiment).items():
        if source is None:
            write_checkpoint(kind, None)
            continue
        checkpoint = resolve_model(kind, key, source, experiment.paper)
        write_checkpoint(kind, checkpoint)
        print(f"{kind}: {checkpoint.path} ({checkpoint.sha256[:12]})")
        if is_url(source) and RemoteFile.parse(source).digest is None:
            print(f"  to pin these bytes: {key} = {RemoteFile.parse(source).url}#sha256={checkpoint.sha256}")


if __name__ == "__main__":
    with stage("checkpoints"):
        main()
