"""The two linear projections through which BLIP compares images and captions."""

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from stages.core.weights_file import save_weights
from stages.models.weights import read_weights


class Projections(nn.Module):
    """A linear layer for images and one for texts, each followed by L2 normalization. Names are BLIP's."""

    def __init__(self, image_dim: int, text_dim: int, width: int):
        super().__init__()
        self.vision_proj = nn.Linear(image_dim, width)
        self.text_proj = nn.Linear(text_dim, width)

    def images(self, states: Tensor) -> Tensor:
        """Embeddings `(N, width)` of class-token states `(N, image_dim)`."""
        return F.normalize(self.vision_proj(states), dim=-1)

    def texts(self, states: Tensor) -> Tensor:
        """Embeddings `(N, width)` of class-token states `(N, text_dim)`."""
        return F.normalize(self.text_proj(states), dim=-1)


def load_projections(path: Path) -> Projections:
    """Load a run's projections, or those in the weights of a BLIP."""
    weights = read_weights(path, lambda name: name.startswith(("vision_proj.", "text_proj.")))
    width, image_dim = weights["vision_proj.weight"].shape
    projections = Projections(image_dim, weights["text_proj.weight"].shape[1], width)
    projections.load_state_dict(weights)
    return projections


def save_projections(path: Path, projections: Projections) -> None:
    """Write the weights as safetensors."""
    save_weights(path, projections.state_dict())
