"""The codes of the whole corpus, by a codec that is not trained anew: codes.npz."""

from omegaconf import DictConfig

from training import dataset
from training.codec import load_codec, write_codes
from training.step import corpus, on_device, step


@step
def main(cfg: DictConfig) -> None:
    on_device(cfg)
    encoder, _, quantizer = load_codec(cfg)
    write_codes(cfg, encoder, quantizer, dataset.load(cfg, corpus(cfg)["train"]))


if __name__ == "__main__":
    main()
