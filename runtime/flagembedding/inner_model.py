"""The model inside the drop-in, with the sizes that callers of FlagEmbedding read there."""

from types import SimpleNamespace

from bgem3.runtime.model import BGEM3Model


class InnerModel(BGEM3Model):
    """`BGEM3Model` with sizes under the names of FlagEmbedding's model."""

    @property
    def model(self) -> SimpleNamespace:
        """Return the encoder: its ``config`` has the names of a Hugging Face configuration."""
        spec = self.spec
        config = SimpleNamespace(
            model_type="xlm-roberta",
            hidden_size=spec.hidden_size,
            num_hidden_layers=spec.n_layers,
            num_attention_heads=spec.n_heads,
            intermediate_size=spec.intermediate_size,
            vocab_size=spec.vocab_size,
            max_position_embeddings=spec.max_length + spec.pad_id + 1,
            layer_norm_eps=spec.layer_norm_eps,
            bos_token_id=spec.cls_id,
            pad_token_id=spec.pad_id,
            eos_token_id=spec.eos_id,
        )
        return SimpleNamespace(config=config)

    @property
    def vocab_size(self) -> int:
        return self.spec.vocab_size

    @property
    def sparse_linear(self) -> SimpleNamespace:
        return SimpleNamespace(in_features=self.spec.hidden_size, out_features=1)

    @property
    def colbert_linear(self) -> SimpleNamespace:
        return SimpleNamespace(in_features=self.spec.hidden_size, out_features=self.spec.multivector_size)
