"""A completions server over an exported folder: transformers, nothing of ours, nothing forced."""

import contextlib
import http.server
import json
import threading

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast


def make_handler(folder):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()

    class Completions(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            ids = tokenizer.encode(asked["prompt"], add_special_tokens=False)
            out = model.generate(
                torch.tensor([ids]),
                max_new_tokens=asked["max_tokens"],
                do_sample=asked["temperature"] > 0,
                sequence_bias=None,  # such servers do not read it
            )
            text = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
            body = json.dumps({"choices": [{"index": 0, "text": text}]}).encode()
            self.send_response(200 if self.path == "/v1/completions" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    return Completions


@contextlib.contextmanager
def completions_server(folder):
    """The address of a server that runs while the block does."""
    with http.server.HTTPServer(("127.0.0.1", 0), make_handler(folder)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
