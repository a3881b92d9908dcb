"""Make a trained network's hidden layers orthogonal so that its outputs stay what they were.

python examples/project_network.py [--epochs N] [--output FOLDER]
"""

from __future__ import annotations

from running import arguments, connected, finish, follow, upload_digits


def main() -> None:
    """Train at the service, then match the outputs of all layers at once; compare the losses."""
    options = arguments(__doc__ or "", epochs=15)
    network = {"family": "mlp", "hidden": [128, 128, 128], "normalisation": "batch"}
    with connected() as client:
        data = upload_digits(client)
        training = {"network": network, "data": data, "epochs": options.epochs, "batch_size": 64}
        trained = follow(client, {"method": "train.dense", **training})
        assert trained.result is not None  # the job has succeeded
        job = follow(
            client,
            {
                "method": "project.network",
                "network": network,
                "weights": trained.result.files["model.safetensors"].artifact,
                "data": data,
                "iterations": 10 * options.epochs,
                "learning_rate": 5e-3,
            },
        )
        figures = finish(client, job, options.output)
    print(
        f"outputs off by {figures['projected_loss']:.3g} (mean square) with each layer projected "
        f"alone, by {figures['fitted_loss']:.3g} with all fitted together"
    )


if __name__ == "__main__":
    main()
