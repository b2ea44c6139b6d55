"""Names, downloads and tokens."""

import hashlib
import http.server
import threading
from pathlib import Path

import open_clip
import pytest
import torch

import clip
import clip.clip
from clip.simple_tokenizer import SimpleTokenizer
from dassl.utils import UserError

TEXTS = [
    "a photo of a dog.",
    "Hello!! World's   best &amp; <b>HTML</b>",
    "naïve café — 東京 747-400",
    "",
    "u.s.. 😀",
]


def test_tokens_equal_open_clips():
    assert torch.equal(clip.tokenize(TEXTS), open_clip.tokenize(TEXTS).int())
    assert clip.tokenize("dog").shape == (1, 77)


def test_too_long_texts():
    with pytest.raises(RuntimeError, match="too long"):
        clip.tokenize("dog " * 80)
    tokens = clip.tokenize("dog " * 80, truncate=True)
    assert tokens[0, -1] == SimpleTokenizer().encoder["<|endoftext|>"]


def test_tokenizer_has_openais_names():
    tokenizer = SimpleTokenizer()
    assert tokenizer.encoder["<|startoftext|>"] == 49406
    assert tokenizer.encoder["<|endoftext|>"] == 49407
    assert tokenizer.encode("<|endoftext|>") == [49407]
    assert tokenizer.decode(tokenizer.encode("a Photo of a dog")).strip() == "a photo of a dog"


def test_all_nine_models_are_known():
    assert clip.available_models()[:9] == [
        *("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"),
        *("ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"),
    ]
    for name in clip.available_models()[:9]:
        url = open_clip.pretrained.get_pretrained_url(
            name.replace("/", "-").split("@")[0], "openai"
        )
        if "@" not in name:
            assert clip.clip._MODELS[name] == url


def test_unknown_names_are_suggested():
    with pytest.raises(UserError, match="did you mean 'ViT-B/1"):
        clip.load("ViT-B16")


CONTENT = bytes(range(256)) * 4000
SHA = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT with ranges; breaks off the first answer; lies under /wrong/."""

    broken = 0
    ranges: list = []

    def do_GET(self):
        start = 0
        if "Range" in self.headers:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            Handler.ranges.append(start)
        body = CONTENT[start:] if "wrong" not in self.path else b"not it"
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if Handler.broken:
            Handler.broken -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    Handler.broken, Handler.ranges = 0, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_download_resumes_and_verifies(server, tmp_path):
    url = f"{server}/{SHA}/model.pt"
    Handler.broken = 1
    with pytest.raises(UserError, match="by hand and put it at"):
        clip.clip._download(url, tmp_path)
    assert not (tmp_path / "model.pt").exists()
    path = clip.clip._download(url, tmp_path)
    assert Handler.ranges == [len(CONTENT) // 2]
    assert Path(path).read_bytes() == CONTENT
    assert clip.clip._download(url, tmp_path) == path  # now from the folder
    assert len(Handler.ranges) == 1


def test_a_wrong_file_is_not_kept(server, tmp_path):
    with pytest.raises(UserError, match="not the released file"):
        clip.clip._download(f"{server}/wrong/model.pt", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_offline_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="by hand and put it at .*model.pt"):
        clip.clip._download(f"http://127.0.0.1:9/{SHA}/model.pt", tmp_path)
