"""Hyperparameters in one line."""

from manytune.evaluation.hyperparameters import hyperparameters


def test_the_method_comes_first_then_what_everybody_asks_for():
    recipe = {
        "method": {
            "name": "lora",
            "r": 8,
            "lora_alpha": 16,
            "target_modules": ["q_proj", "v_proj"],
            "bias": None,
        },
        "training": {
            "batch_size": 8,
            "epochs": 3.0,
            "learning_rate": 2e-4,
            "max_steps": None,
            "report_to": [],
        },
    }
    assert hyperparameters(recipe) == {
        "Hyperparameters": "lora, r=8, lora_alpha=16, target_modules=q_proj+v_proj; "
        "learning_rate=0.0002, epochs=3, batch_size=8"
    }


def test_a_recipe_without_a_training_has_none():
    assert hyperparameters({"shots": 4, "seed": 0}) == {}
    assert hyperparameters({"method": "full"}) == {"Hyperparameters": "full"}
