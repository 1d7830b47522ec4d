"""Artefacts while training: one chain for a torch data set and for TorchIO. python examples/augment_dataset.py"""

import torch
import torchio
from torch.utils.data import DataLoader, Dataset

from qsim.kspace import BiasField, KSpaceNoise, RFSpike
from trainers.augment import CorruptedDataset
from trainers.torchio_transform import CorruptTransform

CHAIN = [
    BiasField(strength=(0, 0.5)),
    RFSpike(amplitude=(0.1, 2), probability=0.3),
    KSpaceNoise(snr_db=(5, 20)),
]


class Discs(Dataset):
    """Magnitude images with a label, as any data set of yours."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        y, x = torch.meshgrid(torch.linspace(-1, 1, 65), torch.linspace(-1, 1, 64), indexing="ij")
        disc = (x**2 + y**2 < 0.1 * (index + 1)).float()
        return {"image": disc[None], "label": index}


def main():
    # what is drawn depends on seed, epoch and index, and on nothing else: take as many workers as you like
    dataset = CorruptedDataset(Discs(), CHAIN, seed=1, key="image", phase="zero")
    for epoch in range(2):
        dataset.set_epoch(epoch)
        for batch in DataLoader(dataset, batch_size=4, num_workers=0):
            severity = [[round(value, 2) for value in row] for row in batch["severity"].tolist()]
            print(f"epoch {epoch}: images {tuple(batch['image'].shape)}, severity {severity}")

    # inside TorchIO, beside its geometric transforms; the subject's id takes the place of the index
    corruption = CorruptTransform(CHAIN, seed=1, key="id", phase="zero")
    transform = torchio.Compose([corruption, torchio.RandomFlip(), torchio.ZNormalization()])
    image = torchio.ScalarImage(tensor=torch.rand(1, 32, 30, 28))
    subject = transform(torchio.Subject(t1=image, id="sub-01"))
    print(
        f"TorchIO: {tuple(subject['t1'].shape)}, severity {[round(value, 2) for value in subject['severity'].tolist()]}"
    )


if __name__ == "__main__":
    main()
