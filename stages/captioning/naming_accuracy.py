"""Whether captions of generated scenes name the right objects. BLEU can be high for a sentence about a wrong class."""

from stages.data.scenes.captions import mentions
from stages.data.scenes.scene import SceneObject


def naming_accuracy(captions: dict[str, str], objects: dict[str, tuple[SceneObject, ...]]) -> dict[str, float]:
    """Percentages over captions, by image ID; empty if `objects` is empty, as for images that are not scenes.

    `class_named` is the share of captions that name the class of the largest object, `color_named` of those that also
    name its color. `class_there` is the share of all named classes that are in the image.
    """
    if not objects:
        return {}
    class_named, color_named, correct_mentions, total_mentions = 0, 0, 0, 0
    for image_id, caption in captions.items():
        mentioned = mentions(caption.split())
        largest = max(objects[image_id], key=lambda scene_object: scene_object.radius)
        colors = [mention.color for mention in mentioned if mention.name == largest.name]
        class_named += bool(colors)
        color_named += largest.color in colors
        names = {scene_object.name for scene_object in objects[image_id]}
        correct_mentions += sum(mention.name in names for mention in mentioned)
        total_mentions += len(mentioned)
    return {
        "class_named": 100 * class_named / len(captions),
        "color_named": 100 * color_named / len(captions),
        "class_there": 100 * correct_mentions / max(total_mentions, 1),
    }
