"""Whether captions of generated scenes say what is there. BLEU can be high for a sentence about a wrong class."""

from stages.data.scenes.captions import mentions, place_phrase, position_phrase, relation_phrase, relations
from stages.data.scenes.scene import SceneObject


def naming_accuracy(
    captions: dict[str, str], objects: dict[str, tuple[SceneObject, ...]], side: int
) -> dict[str, float]:
    """Percentages over captions, by image ID; empty if `objects` is empty, as for images that are not scenes.

    - `class_named`: captions that name the class of the largest object; `color_named`: that also name its color.
    - `class_there`: of all named classes, those that are in the image.
    - `place_named`: captions that tell a place, as in "at the top left"; `place_right`: of these, captions whose last
      named class is at that place. `side` is the scenes' side in pixels.
    - `relation_named`: captions that tell how two objects lie, as in "left of"; `relation_right`: of these, captions
      whose two classes are in the image and lie like that.

    `place_right` and `relation_right` are missing if no caption tells a place or a relation.
    """
    if not objects:
        return {}
    class_named = 0
    color_named = 0
    correct_mentions = 0
    total_mentions = 0
    places_right: list[bool] = []
    relations_right: list[bool] = []
    for image_id, caption in captions.items():
        words = caption.split()
        mentioned = mentions(words)
        largest = max(objects[image_id], key=lambda scene_object: scene_object.radius)
        colors = [mention.color for mention in mentioned if mention.name == largest.name]
        class_named += bool(colors)
        color_named += largest.color in colors
        by_name = {scene_object.name: scene_object for scene_object in objects[image_id]}  # each class once per scene
        correct_mentions += sum(mention.name in by_name for mention in mentioned)
        total_mentions += len(mentioned)
        place = place_phrase(words)
        if place and mentioned:
            scene_object = by_name.get(mentioned[-1].name)
            places_right.append(scene_object is not None and position_phrase(scene_object, side) == place)
        relation = relation_phrase(words, *mentioned[:2]) if len(mentioned) > 1 else None
        if relation:
            first, second = (by_name.get(mention.name) for mention in mentioned[:2])
            relations_right.append(first is not None and second is not None and relation in relations(first, second))
    accuracy = {
        "class_named": 100 * class_named / len(captions),
        "color_named": 100 * color_named / len(captions),
        "class_there": 100 * correct_mentions / max(total_mentions, 1),
    }
    for name, right in (("place", places_right), ("relation", relations_right)):
        accuracy[f"{name}_named"] = 100 * len(right) / len(captions)
        if right:
            accuracy[f"{name}_right"] = 100 * sum(right) / len(right)
    return accuracy
