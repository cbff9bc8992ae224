"""Sequence models: a step form for acting, a sequence form for learning (spec/models.md sections 3 and 12)."""

from hyperrl.modules.sequence.base import SequenceModel
from hyperrl.modules.sequence.causal_transformer import CausalTransformer
from hyperrl.modules.sequence.gru import GRU
from hyperrl.modules.sequence.lstm import LSTM
from hyperrl.modules.sequence.memoryless import Memoryless, Transition
from hyperrl.modules.sequence.mingru import MinGRU
from hyperrl.modules.sequence.transformer import Transformer

__all__ = ["GRU", "LSTM", "CausalTransformer", "Memoryless", "MinGRU", "SequenceModel", "Transformer", "Transition"]
