"""Siamese augmentation: one draw for all images, and each operation's definition."""

from __future__ import annotations

import torch

from core.seeds import torch_generator
from distill import augmentation
from distill.augmentation import draw_augmentation

IMAGES = torch.randn(4, 3, 16, 16, generator=torch_generator(0))


def test_off_changes_nothing() -> None:
    assert draw_augmentation("off", torch_generator(0))(IMAGES) is IMAGES


def test_every_image_is_changed_by_the_same_draw() -> None:
    for seed in range(30):
        augment = draw_augmentation("dsa", torch_generator(seed))
        whole = augment(IMAGES)
        assert whole.shape == IMAGES.shape
        apart = torch.cat([augment(IMAGES[:1]), augment(IMAGES[1:])])
        assert torch.allclose(whole, apart, atol=1e-6)


def test_draws_differ_and_repeat_by_seed() -> None:
    outputs = [draw_augmentation("dsa", torch_generator(seed))(IMAGES) for seed in range(20)]
    again = draw_augmentation("dsa", torch_generator(7))(IMAGES)
    assert torch.equal(outputs[7], again)
    assert sum(torch.equal(outputs[0], other) for other in outputs[1:]) < 5


def test_no_flip_never_mirrors() -> None:
    flipped = IMAGES.flip(3)
    with_flip = without = 0
    for seed in range(120):
        with_flip += torch.equal(draw_augmentation("dsa", torch_generator(seed))(IMAGES), flipped)
        without += torch.equal(
            draw_augmentation("dsa-no-flip", torch_generator(seed))(IMAGES), flipped
        )
    assert with_flip > 0
    assert without == 0


def test_crop_shifts_and_pads_with_zeros() -> None:
    up_left = augmentation._crop([0.0, 0.0, 0.0])(IMAGES)
    assert torch.equal(up_left[:, :, 2:, 2:], IMAGES[:, :, :-2, :-2])
    assert not up_left[:, :, :2].any()
    centre = augmentation._crop([0.5, 0.5, 0.0])(IMAGES)
    assert torch.equal(centre, IMAGES)


def test_cutout_clears_a_square_and_no_more() -> None:
    inside = augmentation._cutout([0.5, 0.5, 0.0])(torch.ones(1, 1, 16, 16))
    assert int((inside == 0).sum()) == 64
    corner = augmentation._cutout([0.0, 0.0, 0.0])(torch.ones(1, 1, 16, 16))
    assert int((corner == 0).sum()) == 16


def test_scale_and_rotation_are_the_identity_at_their_middle() -> None:
    middle = (1 - 1 / 1.2) / (1.2 - 1 / 1.2)
    assert torch.allclose(augmentation._scale([middle, middle, 0])(IMAGES), IMAGES, atol=1e-5)
    assert torch.allclose(augmentation._rotate([0.5, 0, 0])(IMAGES), IMAGES, atol=1e-5)


def test_colour_keeps_means_where_only_contrast_changes() -> None:
    changed = augmentation._colour([0.5, 0.5, 0.0])(IMAGES)
    means = IMAGES.mean(dim=(1, 2, 3))
    assert torch.allclose(changed.mean(dim=(1, 2, 3)), means, atol=1e-5)
    centred = IMAGES - means.view(-1, 1, 1, 1)
    assert torch.allclose(changed - means.view(-1, 1, 1, 1), 0.5 * centred, atol=1e-5)
