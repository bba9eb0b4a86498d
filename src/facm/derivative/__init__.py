"""The total derivative of the network along the flow, by interchangeable strategies (Eq. 7 and 16).

    F, dF = derivative(prediction, (x_t, t), (v, 1))

The value F carries the graph for the backward pass. The tangent dF never does, since it is only used under
stop-gradient (Alg. 1, line 7). docs/performance.md compares the strategies.
"""

from facm.derivative.base import Derivative, Function, Pair, Prediction
from facm.derivative.chain import Chain
from facm.derivative.errors import ForwardModeError
from facm.derivative.finite_difference import FiniteDifference
from facm.derivative.fixed_dropout import same_dropout
from facm.derivative.no_graph import NoGraph
from facm.derivative.op_level import OpLevel
from facm.derivative.whole_network import WholeNetwork, plain_attention

__all__ = [
    "Chain",
    "Derivative",
    "FiniteDifference",
    "ForwardModeError",
    "Function",
    "NoGraph",
    "OpLevel",
    "Pair",
    "Prediction",
    "WholeNetwork",
    "plain_attention",
    "same_dropout",
]
