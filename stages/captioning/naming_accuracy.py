"""Do captions of scenes name what is there? BLEU hides a wrong class behind the right words around it."""

from stages.data.scenes.captions import mentions
from stages.data.scenes.scene import SceneObject


def naming_accuracy(captions: dict[str, str], things: dict[str, tuple[SceneObject, ...]]) -> dict[str, float]:
    """Percentages of captions, by image id, that name the class of the largest thing, and its class with its color.

    `class_there` is the share of the classes named at all that are in the image. Empty where `things` tells nothing.
    """
    if not things:
        return {}
    named, colored, there, told = 0, 0, 0, 0
    for image_id, text in captions.items():
        said, held = mentions(text.split()), things[image_id]
        largest = max(held, key=lambda thing: thing.radius)
        colors = [mention.color for mention in said if mention.name == largest.name]
        named += bool(colors)
        colored += largest.color in colors
        there += sum(any(mention.name == thing.name for thing in held) for mention in said)
        told += len(said)
    return {
        "class_named": 100 * named / len(captions),
        "color_named": 100 * colored / len(captions),
        "class_there": 100 * there / max(told, 1),
    }
