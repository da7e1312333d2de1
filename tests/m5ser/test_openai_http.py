"""Against a real server on loopback that fails, stalls and lies, by what it was told to do with a text."""

import collections
import http.server
import io
import json
import socket
import struct
import threading
import time
from concurrent import futures

import numpy as np
import pytest
import soundfile

from mser_jax.m5ser import engines, http_post, openai_http
from mser_jax.m5ser.engine import Engine, UnsupportedSpeechError
from mser_jax.m5ser.engines import EngineError, EngineUnavailableError

KEY = "sk-very-secret-123"
TEXT = "The letter is lying on the table."


def tone(seconds=1.5, rate=24000, level=0.3, format="WAV"):
    buffer = io.BytesIO()
    wave = level * np.sin(2 * np.pi * 180 * np.arange(round(seconds * rate)) / rate)
    soundfile.write(buffer, wave, rate, format=format, subtype=None if format != "WAV" else "PCM_16")
    return buffer.getvalue()


def pcm(seconds=1.5):
    return tone(seconds)[44:]


class Server(http.server.ThreadingHTTPServer):
    """Answers a text with what `script[text]` lists, one request after the other, then with `usual`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.usual = collections.defaultdict(list), tone()
        self.seen, self.busy, self.most_at_once, self.lock = [], 0, 0, threading.Lock()
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        pass  # clients that gave up


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((time.monotonic(), self.path, body, dict(self.headers)))
            self.server.busy += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.busy)
            todo = self.server.script[body["input"]]
            act = todo.pop(0) if todo else self.server.usual
        try:
            act(self) if callable(act) else self.answer(200, act)
        finally:
            with self.server.lock:
                self.server.busy -= 1

    def answer(self, status, data, kind="audio/wav", length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = True


def status(code, words=b"try later", kind="text/plain", **headers):
    return lambda handler: handler.answer(code, words, kind, **headers)


def reset(handler):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.wfile.close()
    handler.rfile.close()
    handler.connection.close()  # with nothing lingering: RST
    handler.close_connection = True


def stall(handler):
    handler.server.closing.wait(20)


def drip(handler):
    """Never silent for long, never done."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while not handler.server.closing.wait(0.05):
        handler.wfile.write(b"\0")


def cut(handler):
    handler.answer(200, tone()[:20000], length=len(tone()))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(http_post, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setenv("TTS_KEY", KEY)
    made = Server()
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    made.closing.set()
    made.shutdown()
    made.server_close()


def make(server, **options):
    options = {"url": server.url, "model": "voicebox", "voices": "anna,ben", "languages": "en,de"} | options
    return engines.build_engine("openai_http", {"api_key_env": "TTS_KEY", "timeout_seconds": 0.6} | options)


def speak(engine, text=TEXT, **change):
    how = {"language": "en", "voice": "anna", "emotion": "sad", "intensity": 1.0, "seed": 7}
    return engine.speak(text, **how | change)


def test_the_request_is_openais_and_the_answer_speech(server):
    engine = make(server, speed=1.2, extra={"seed": "{seed}", "style": "{emotion}-{intensity}", "top_p": 0.9})
    speech = speak(engine, intensity=0.6)
    (_, path, body, headers), *rest = server.seen
    assert not rest and path == "/v1/audio/speech" and headers["Authorization"] == f"Bearer {KEY}"
    words = body.pop("instructions")
    assert body == {
        "model": "voicebox", "input": TEXT, "voice": "anna", "response_format": "wav", "speed": 1.2, "seed": 7,
        "style": "sad-0.6", "top_p": 0.9,
    }  # fmt: skip
    assert "quite sad" in words or "quite sorrowful" in words
    assert isinstance(engine, Engine) and engine.name == "voicebox" and engine.voices("de") == ("anna", "ben")
    assert speech.waveform.dtype == np.float32 and speech.sampling_rate == 16000
    assert len(speech.waveform) == 24000 and np.abs(speech.waveform).max() == pytest.approx(0.3, abs=0.01)
    told = dict(speech.metadata)
    assert told["instructions"] == words and told["server_rate"] == 24000 and told["url"].startswith(server.url)
    assert {k: told[k] for k in ("model", "voice", "emotion", "intensity", "seed", "speed")} == {
        "model": "voicebox", "voice": "anna", "emotion": "sad", "intensity": 0.6, "seed": 7, "speed": 1.2,
    }  # fmt: skip
    assert KEY not in repr(speech) + repr(vars(engine).keys()) + repr(engine.facts())


def test_instructions_in_the_input_and_in_the_texts_own_language(server):
    engine = make(server, input="{instructions}<|endofprompt|>{text}", instruct_in="own")
    speak(engine, "Der Brief liegt auf dem Tisch.", language="de", intensity=1.3)
    body = server.seen[0][2]
    assert "äußerst traurig" in body["input"] and body["input"].endswith(
        "<|endofprompt|>Der Brief liegt auf dem Tisch."
    )
    assert "instructions" not in body


@pytest.mark.parametrize(
    "trouble",
    [
        [status(500), status(503), status(502)],
        [status(429, Retry_After="0")],
        [reset, reset],
        [cut],
        [stall],
        [drip],
    ],
    ids=["5xx", "429", "reset", "cut", "stall", "drip"],
)
def test_what_passes_is_tried_again(server, trouble):
    server.script[TEXT] = list(trouble)
    assert len(speak(make(server)).waveform) == 24000
    assert len(server.seen) == len(trouble) + 1


@pytest.mark.parametrize(
    "trouble, words",
    [
        (status(500, b"out of memory"), "answered 500: out of memory; 3 attempts"),
        (reset, r"(Disconnected|reset).*; 3 attempts"),
        (stall, "no whole answer within 0.3 s; 3 attempts"),
        (drip, "no whole answer within 0.3 s; 3 attempts"),
        (cut, r"received 20000 of 72044.*; 3 attempts"),
    ],
)
def test_what_stays_is_an_error_of_the_line(server, trouble, words):
    server.script[TEXT] = [trouble] * 9
    with pytest.raises(EngineError, match=words):
        speak(make(server, attempts=3, timeout_seconds=0.3))
    assert len(server.seen) == 3


def test_a_date_in_retry_after_and_one_too_far_away(server):
    when = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 2))
    server.script[TEXT] = [status(429, Retry_After=when)]
    speak(make(server))
    assert 0.8 < server.seen[1][0] - server.seen[0][0] < 3
    server.script[TEXT] = [status(503, Retry_After="86400")]
    with pytest.raises(EngineUnavailableError, match="asks to wait 86400 s"):
        speak(make(server))


def test_pauses_grow(server, monkeypatch):
    monkeypatch.setattr(http_post, "BACKOFF_SECONDS", 0.1)
    server.script[TEXT] = [status(500)] * 3
    speak(make(server))
    gaps = np.diff([seen[0] for seen in server.seen])
    for gap, longest in zip(gaps, (0.1, 0.2, 0.4), strict=True):
        assert gap >= longest / 2


def header(rate):
    """A WAV that says another rate than its samples have."""
    data = bytearray(tone())
    data[24:28] = struct.pack("<I", rate)
    return bytes(data)


@pytest.mark.parametrize(
    "lie, words",
    [
        (status(200, b'{"error": {"message": "no such voice"}}', "application/json"), "no such voice"),
        (status(200, b'{"detail": "overloaded"}', "audio/wav"), "overloaded"),
        (status(200, b"<!DOCTYPE html><html>Sign in</html>", "text/html"), "Sign in"),
        (tone()[:30000], "truncated"),
        (tone(level=0.0), "silent"),
        (tone(seconds=0.3), r"0\.30 s, expected at least 0\.8"),
        (header(12000), "12000 Hz, expected 24000 Hz"),
        (b"", "empty"),
        (b"\xff\x00\x01" * 999, "unreadable"),
    ],
    ids=["json", "json as audio", "html", "truncated", "silence", "too short", "rate", "nothing", "noise"],
)
def test_lies_are_found_and_asked_about_once_more(server, lie, words, tmp_path):
    server.script[TEXT] = [lie, lie]
    engine = make(server, sampling_rate=24000, cache=str(tmp_path))
    with pytest.raises(EngineError, match=words) as caught:
        speak(engine)
    assert server.url in str(caught.value) and TEXT in str(caught.value)
    assert len(server.seen) == openai_http.BAD_ANSWERS and not list(tmp_path.rglob("*.wav"))
    server.script[TEXT] = [lie]
    assert len(speak(engine).waveform) == 24000


@pytest.mark.parametrize(
    "answer", [status(200, b'{"error": "x"}' * 2000, "audio/pcm"), status(200, b"<html>" * 9000, "audio/pcm")]
)
def test_text_is_not_taken_for_headerless_samples(server, answer):
    server.script[TEXT] = [answer] * 2
    with pytest.raises(EngineError, match="no audio but"):
        speak(make(server, response_format="pcm"))


@pytest.mark.parametrize("format, data", [("pcm", pcm()), ("flac", tone(format="FLAC")), ("mp3", tone(format="MP3"))])
def test_other_formats(server, format, data):
    server.usual = data
    waveform = speak(make(server, response_format=format)).waveform
    assert len(waveform) == pytest.approx(24000, rel=0.1) and np.abs(waveform).max() == pytest.approx(0.3, abs=0.05)


def test_a_wav_whose_length_was_not_known_when_it_began(server):
    data = bytearray(tone())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"  # as streaming servers write it
    server.usual = bytes(data)
    assert len(speak(make(server)).waveform) == 24000


@pytest.mark.parametrize("code", [401, 403, 404, 307])
def test_what_no_line_can_pass_stops_the_run_without_naming_the_key(server, code):
    server.script[TEXT] = [status(code, f"bad key {KEY}".encode(), Location="https://elsewhere.example/")] * 9
    with pytest.raises(EngineUnavailableError, match=f"answered {code}.*api_key_env") as caught:
        speak(make(server))
    assert len(server.seen) == 1 and KEY not in str(caught.value)


def test_an_empty_account_stops_the_run(server):
    server.script[TEXT] = [status(429, b'{"error": {"code": "insufficient_quota"}}')] * 9
    with pytest.raises(EngineUnavailableError, match="insufficient_quota"):
        speak(make(server))
    assert len(server.seen) == 1


def test_a_refused_line_is_its_own_fault(server):
    server.script[TEXT] = [status(400, b"text violates the policy")] * 9
    engine = make(server)
    with pytest.raises(EngineError, match="violates the policy"):
        speak(engine)
    assert len(server.seen) == 1
    assert len(speak(engine, "Another text that is fine.").waveform)


def test_a_server_that_died_stops_the_run(server):
    engine = make(server, attempts=1)
    server.shutdown()
    server.server_close()
    for line in range(openai_http.GIVE_UP_AFTER):
        last = line == openai_http.GIVE_UP_AFTER - 1
        with pytest.raises(EngineUnavailableError if last else EngineError, match="in succession" if last else "127"):
            speak(engine, f"{TEXT} {line}")


def test_what_was_paid_for_is_kept(server, tmp_path):
    first = speak(make(server, cache=str(tmp_path / "kept")))
    server.usual = tone(seconds=2.0)
    again = speak(make(server, cache=str(tmp_path / "kept")))  # as the next run
    assert len(server.seen) == 1
    np.testing.assert_array_equal(first.waveform, again.waveform)
    assert dict(first.metadata) == dict(again.metadata)
    for change in ({"voice": "ben"}, {"intensity": 0.3}, {"emotion": "happy"}):
        assert len(speak(make(server, cache=str(tmp_path / "kept")), **change).waveform) == 32000
    assert len(server.seen) == 4 and len(list((tmp_path / "kept").rglob("*.wav"))) == 4
    assert KEY.encode() not in b"".join(p.read_bytes() for p in tmp_path.rglob("*.wav"))
    damaged = [p for p in tmp_path.rglob("*.wav") if len(p.read_bytes()) == len(tone())]
    damaged[0].write_bytes(tone()[:9000])
    assert len(speak(make(server, cache=str(tmp_path / "kept"))).waveform) == 32000


def wait(seconds):
    def act(handler):
        time.sleep(seconds)
        handler.answer(200, tone())

    return act


def test_as_many_at_once_as_allowed_and_no_more(server):
    server.usual = wait(0.1)
    engine = make(server, concurrency=3)
    assert engine.concurrency == 3  # for the generator, which has a thread for each
    with futures.ThreadPoolExecutor(9) as pool:
        list(pool.map(lambda n: speak(engine, f"{TEXT} {n}"), range(12)))
    assert len(server.seen) == 12 and server.most_at_once == 3


def test_lines_that_ask_the_same_at_once_pay_once(server, tmp_path):
    pytest.importorskip("pyworld")
    server.usual = wait(0.1)
    engine = make(server, instructions="none", world=True, concurrency=6, cache=str(tmp_path))
    with futures.ThreadPoolExecutor(6) as pool:
        emotions = ("angry", "fear", "happy", "neutral", "sad", "surprise")
        spoken = list(pool.map(lambda emotion: speak(engine, emotion=emotion), emotions))
    assert len(server.seen) == 1 and len({len(speech.waveform) for speech in spoken}) == 6


def test_the_rate_is_kept_retries_included(server):
    server.script[f"{TEXT} 0"] = [status(500)] * 2
    engine = make(server, requests_per_minute=60 / 0.08, concurrency=6)
    with futures.ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: speak(engine, f"{TEXT} {n}"), range(6)))
    gaps = np.diff(sorted(seen[0] for seen in server.seen))
    assert len(gaps) == 7 and gaps.mean() > 0.06  # else it would be a tenth of that


def test_everybody_waits_when_the_server_asks_one_to(server):
    server.script[TEXT] = [status(429, Retry_After="1")]
    engine = make(server, concurrency=2)
    with futures.ThreadPoolExecutor(2) as pool:
        one = pool.submit(speak, engine)
        while not server.seen:
            time.sleep(0.01)
        time.sleep(0.1)
        other = pool.submit(speak, engine, "Somebody else's line.")
        one.result(), other.result()
    begin, *later = [seen[0] for seen in server.seen]
    assert min(later) - begin > 0.9


def test_world_where_the_server_knows_no_emotions(server):
    pytest.importorskip("pyworld")
    engine = make(server, instructions="none", world=True)
    slow, fast = (speak(engine, emotion=e) for e in ("sad", "fear"))
    assert all("instructions" not in seen[2] for seen in server.seen)
    assert len(slow.waveform) > 1.3 * len(fast.waveform) and slow.metadata["rate_oct"] < fast.metadata["rate_oct"]


def test_the_fingerprint_is_of_the_sound_and_not_of_the_way_there(server):
    def print_of(**options):
        return engines.fingerprint(make(server, **options))

    for same in ({"attempts": 9}, {"concurrency": 1}, {"cache": "/nowhere"}, {"api_key_env": ""}):
        assert print_of(**same) == print_of()
    changes = {"model": "other"}, {"instruct_in": "zh"}, {"speed": 0.9}, {"extra": {"cfg": 2}}, {"world": True}
    assert len({print_of(**change) for change in (*changes, {})}) == len(changes) + 1


@pytest.mark.parametrize(
    "change, words",
    [
        ({"language": "fr"}, r"'fr'.*de, en"),
        ({"voice": "eve"}, r"'eve'.*anna, ben"),
        ({"emotion": "bored"}, r"'bored'.*angry"),
    ],
)
def test_what_is_missing_is_named_with_what_there_is(server, change, words):
    with pytest.raises(UnsupportedSpeechError, match=words):
        speak(make(server), **change)
    assert not server.seen


@pytest.mark.parametrize(
    "options, words",
    [
        ({"url": "localhost:8000/v1"}, "http"),
        ({"url": f"http://me:{KEY}@localhost/v1"}, "without user"),
        ({"api_key_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE is not set"),
        ({"instructions": "none"}, "nothing would carry the emotion"),
        ({"instructions": "/no/such.toml"}, "no file"),
        ({"instruct_in": "xx"}, "'xx'.*en"),
        ({"extra": {"a": "{mood}"}}, "mood"),
        ({"input": "hello"}, "text"),
        ({"attempts": 0}, "attempts"),
        ({"voices": ""}, "voices"),
        ({"atempts": 3}, "Did you mean 'attempts'"),
    ],
)
def test_bad_options_are_said_before_anything_is_paid(server, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        make(server, **options)
    assert KEY not in str(caught.value) and not server.seen
