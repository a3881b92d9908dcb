"""Recognise, by content, files that are not safetensors, and say what to do about each."""

from __future__ import annotations

from stiefel.errors import InvalidInputError

CONVERT = (
    "Convert it on your own machine, where you trust the file: "
    "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')."
)

# code, what it is, how it starts, remedy
SIGNATURES: tuple[tuple[str, str, tuple[bytes, ...], str], ...] = (
    (
        "torch_zip_file",
        "a zip archive (.npz, or PyTorch's .pt, .bin)",
        (b"PK\x03\x04", b"PK\x05\x06"),
        CONVERT,
    ),
    (
        "pickle_file",
        "a Python pickle (.pt, .bin, .pkl)",
        tuple(bytes([0x80, protocol]) for protocol in range(2, 6)),
        CONVERT,
    ),
    (
        "lfs_pointer",
        "a Git LFS pointer, not the file it points to",
        (b"version https://git-lfs", b"version https://hawser"),
        "Run `git lfs pull` in the repository and upload the real file.",
    ),
    (
        "html_page",
        "an HTML or XML page, likely a login or error page saved in place of the file",
        (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body"),
        "Download the file again, with your access token if it needs one.",
    ),
    (
        "gzip_file",
        "a compressed archive",
        (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf"),
        "Unpack it and upload the .safetensors file itself.",
    ),
    ("gguf_file", "a GGUF file", (b"GGUF",), "Upload the original safetensors weights."),
    ("hdf5_file", "an HDF5 file (.h5)", (b"\x89HDF\r\n",), "Export the weights as safetensors."),
    (
        "numpy_file",
        "a NumPy array (.npy)",
        (b"\x93NUMPY",),
        "Save it with safetensors.numpy.save_file.",
    ),
    ("json_file", "a JSON text", (b"{", b"["), "Upload the weights, not their index or config."),
)


def recognise(start: bytes) -> InvalidInputError | None:
    """Return the error that fits the first bytes of a file that is not safetensors."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for code, what, prefixes, fix in SIGNATURES:
        if start.startswith(prefixes) or text.startswith(prefixes):
            return InvalidInputError(f"the file is {what}", code=code, fix=fix)
    return None
