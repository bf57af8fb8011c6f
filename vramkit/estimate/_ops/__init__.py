"""What CUDA's operators allocate beside their results, one module a family of operators."""

from vramkit.estimate._ops import (
    _attention,
    _collectives,
    _convolution,
    _copies,
    _cudnn_rnn,
    _distance,
    _embedding,
    _embedding_bag,
    _fold,
    _foreach,
    _loss,
    _matmul,
    _norm,
    _quantize,
    _random,
    _rectify,
    _recurrent,
    _reduce,
    _scan,
    _softmax,
    _sort,
    _topk,
    _zeros,
)
from vramkit.estimate._ops._plan import Call, Drop, Give, Host, Keep, Plan, Rule, Take
from vramkit.estimate._ops._unknown import is_unknown

RULES: dict[str, Rule] = {
    name: rule
    for family in (
        *(_attention, _collectives, _convolution, _copies, _cudnn_rnn, _distance, _embedding),
        *(
            _embedding_bag,
            _fold,
            _foreach,
            _loss,
            _matmul,
            _norm,
            _random,
            _quantize,
            _rectify,
            _recurrent,
        ),
        *(_reduce, _scan, _softmax, _sort, _topk, _zeros),
    )
    for name, rule in family.RULES.items()
}

__all__ = ["RULES", "Call", "Drop", "Give", "Host", "Keep", "Plan", "Rule", "Take", "is_unknown"]
