"""Parameter counts against the published totals."""

from __future__ import annotations

import pytest

from vramkit.estimate.config import CatalogueEntry, catalogue, count_parameters, read_model
from vramkit.estimate.config._layer_weights import prediction_weights
from vramkit.estimate.config._parameters import model_weights

# Elements of published checkpoints with their layers for multi-token prediction.
_WITH_PREDICTION = {
    "glm-4.5": 358_337_791_296,
    "glm-4.5-air": 110_468_824_832,
}
# Model card of gpt-oss, table 1: MLP, attention, embedding and unembedding, active; in billions.
_GPT_OSS = {
    "gpt-oss-20b": (19.12, 0.64, 1.16, 3.61),
    "gpt-oss-120b": (114.71, 0.96, 1.16, 5.13),
}


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry.name)
def test_the_catalogue_has_the_published_totals(entry: CatalogueEntry) -> None:
    published = entry.published_parameters
    count = count_parameters(read_model(entry.name))
    # Some totals count the buffers of the checkpoint, others do not.
    assert published in (count.total, count.total + count.buffers)
    assert count.total == sum(count.parts.values())
    assert 0 < count.active <= count.total


@pytest.mark.parametrize("name", _WITH_PREDICTION)
def test_layers_for_multi_token_prediction(name: str) -> None:
    count = count_parameters(read_model(name))
    whole = count.total + count.buffers + count.prediction
    assert whole == _WITH_PREDICTION[name]


@pytest.mark.parametrize("name", _GPT_OSS)
def test_parts_as_in_the_model_card(name: str) -> None:
    mlp, attention, embeddings, active = _GPT_OSS[name]
    count = count_parameters(read_model(name))
    experts = count.parts["experts"] + count.parts["router"]
    assert experts / 1e9 == pytest.approx(mlp, abs=0.005)
    # The card adds the sinks and the norms to attention.
    found = count.parts["attention"] + count.parts["norm"]
    assert found / 1e9 == pytest.approx(attention, abs=0.005)
    both = count.parts["embedding"] + count.parts["head"]
    assert both / 1e9 == pytest.approx(embeddings, abs=0.005)
    assert count.active / 1e9 == pytest.approx(active, abs=0.005)


# Elements of the checkpoints on the Hugging Face hub, scales and multi-token prediction included.
@pytest.mark.parametrize(
    ("name", "elements"),
    [
        ("deepseek-v3", 684_531_386_000),
        ("deepseek-v3.2-exp", 685_396_921_376),
    ],
)
def test_checkpoints_with_their_scales(name: str, elements: int) -> None:
    model = read_model(name)
    found = 0
    for weight in (*model_weights(model), *prediction_weights(model)):
        found += weight.elements
        if weight.quantised:
            rows, columns = weight.shape
            found += -(-rows // 128) * -(-columns // 128) * max(weight.experts, 1)
    assert found == elements


def test_the_table() -> None:
    text = str(count_parameters(read_model("deepseek-v3")))
    assert text.startswith("deepseek-v3: parameters\n")
    assert "active for one token                           36,625,603,584\n" in text
    assert "not in the total: multi-token prediction" in text


def test_the_catalogue_says_where_each_is_from() -> None:
    entries = catalogue()
    assert len(entries) >= 30
    for entry in entries:
        assert entry.source.startswith("https://huggingface.co/")
        assert entry.source.endswith("/config.json")
        assert entry.published_note
        assert len(entry.compiled) == 10
