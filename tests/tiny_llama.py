"""A Llama of two layers with random weights, and a tokenizer trained on the spot: enough for a whole engine."""

from pathlib import Path

from pipeline.settings import PROMPTS_FOLDER

BEGIN, END, USER, ASSISTANT = TOKENS = ["<|begin|>", "<|end|>", "@@user@@", "@@assistant@@"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}@@{{ message.role }}@@{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}@@assistant@@{% endif %}"
)


def save_tokenizer(folder: Path) -> Path:
    """Save a byte-level BPE of the prompt templates' own words, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator((path.read_text() for path in sorted(PROMPTS_FOLDER.glob("*.j2"))), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BEGIN, eos_token=END)
    tokenizer.add_special_tokens({"additional_special_tokens": [USER, ASSISTANT]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_llama(folder: Path) -> Path:
    """Save a chat model that loads everywhere a real one does; what it says is short and depends on what it read."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    save_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    # One direction of every hidden state is the same whatever was read, and quotation marks lie in it: strings end.
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1
        model.lm_head.weight[tokenizer.convert_tokens_to_ids('"'), 0] = 160
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
    model.save_pretrained(folder)
    return folder
