"""What a TLS client that keeps to the rules never sends: messages in pieces, records of our own making."""
import pathlib
import ssl
import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from wire import tls_rules


class HandmadeTls:
    """A TLS client, by OpenSSL, on a RawClient that sends only what it is told to; in TLS 1.3 with records of our own making behind the
    handshake. `key_log`: a file for its secrets."""

    def __init__(self, client, key_log, version=ssl.TLSVersion.TLSv1_3):
        self.client = client
        rules = tls_rules(versions=(version, version))
        rules.keylog_filename = str(key_log)
        self.key_log = pathlib.Path(key_log)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = rules.wrap_bio(self.incoming, self.outgoing)
        self.seal, self.salt, self.sequence = None, None, 0

    def step(self, what):
        """`what`() of the TLS object as far as it comes: its value, and whether it is done. What it wrote is in `outgoing`."""
        try:
            return what(), True
        except ssl.SSLWantReadError:
            return None, False

    def hear(self):
        """One receive, for the TLS object."""
        heard = self.client.sock.recv(65536)
        self.incoming.write(heard) if heard else self.incoming.write_eof()

    def shake_hands(self, send):
        """`send` is given what is to be sent, message by message."""
        done = False
        while not done:
            done = self.step(self.tls.do_handshake)[1]
            if self.outgoing.pending:
                send(self.outgoing.read())
            if not done:
                self.hear()
        if self.tls.version() == "TLSv1.3":
            secret = next(line.split()[2] for line in self.key_log.read_text().splitlines() if line.startswith("CLIENT_TRAFFIC_SECRET_0"))
            self.begin_records(bytes.fromhex(secret))

    def begin_records(self, secret):
        """RFC 8446, 7.3: keys out of the secret of the client's records."""
        cipher = self.tls.cipher()[0]
        digest, size = (hashes.SHA384(), 32) if cipher.endswith("SHA384") else (hashes.SHA256(), 32 if "CHACHA20" in cipher else 16)

        def expand(name, length):
            label = b"tls13 " + name
            return HKDFExpand(digest, length, struct.pack(">HB", length, len(label)) + label + b"\0").derive(secret)
        self.seal = (ChaCha20Poly1305 if "CHACHA20" in cipher else AESGCM)(expand(b"key", size)).encrypt
        self.salt = int.from_bytes(expand(b"iv", 12), "big")

    def record(self, kind, content=b"", padding=0):
        """The next record of the client (RFC 8446, 5.2). Nothing may have been written by the TLS object since its handshake."""
        inner = content + bytes([kind]) + bytes(padding)
        header = struct.pack(">BHH", 23, 0x0303, len(inner) + 16)
        nonce = (self.salt ^ self.sequence).to_bytes(12, "big")
        self.sequence += 1
        return header + self.seal(nonce, inner, header)
