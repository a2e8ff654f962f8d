"""What a TLS client that keeps to the rules never sends: messages in pieces, records of our own making."""
import hmac
import pathlib
import ssl
import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from wire import tls_rules


class HandmadeTls:
    """A TLS client, by OpenSSL, on a RawClient that sends only what it is told to, with records of our own making behind the handshake.
    `key_log`: a file for its secrets."""

    def __init__(self, client, key_log, version=ssl.TLSVersion.TLSv1_3):
        self.client, self.heard = client, b""
        rules = tls_rules(versions=(version, version))
        rules.keylog_filename = str(key_log)
        self.key_log = pathlib.Path(key_log)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = rules.wrap_bio(self.incoming, self.outgoing)
        self.record, self.sequence = None, 0

    def step(self, what):
        """`what`() of the TLS object as far as it comes: its value, and whether it is done. What it wrote is in `outgoing`."""
        try:
            return what(), True
        except ssl.SSLWantReadError:
            return None, False

    def hear(self):
        """One receive, for the TLS object."""
        heard = self.client.sock.recv(65536)
        self.heard += heard
        if heard:
            self.incoming.write(heard)
        else:
            self.incoming.write_eof()

    def shake_hands(self, send):
        """`send` is given what is to be sent, message by message."""
        done = False
        while not done:
            done = self.step(self.tls.do_handshake)[1]
            if self.outgoing.pending:
                send(self.outgoing.read())
            if not done:
                self.hear()
        cipher = self.tls.cipher()[0]
        digest, size = (hashes.SHA384(), 32) if cipher.endswith("SHA384") else (hashes.SHA256(), 32 if "CHACHA20" in cipher else 16)
        said = [line.split() for line in self.key_log.read_text().splitlines()]
        if self.tls.version() == "TLSv1.3":
            self.record = self.begin_1_3(ChaCha20Poly1305 if "CHACHA20" in cipher else AESGCM, digest, size, said)
        else:
            assert "GCM" in cipher, cipher  # the other AEAD has no explicit nonce
            self.record = self.begin_1_2(digest, size, said)

    # Both give record(kind, content, padding): the client's next record. Nothing may have been written by the TLS object since its
    # handshake. `said`: the lines of the key log, of which the last of its kind is this connection's.

    def begin_1_3(self, aead, digest, size, said):
        """RFC 8446, 7.3 and 5.2."""
        secret = bytes.fromhex([words[2] for words in said if words[0] == "CLIENT_TRAFFIC_SECRET_0"][-1])

        def expand(name, length):
            label = b"tls13 " + name
            return HKDFExpand(digest, length, struct.pack(">HB", length, len(label)) + label + b"\0").derive(secret)
        seal, salt = aead(expand(b"key", size)).encrypt, int.from_bytes(expand(b"iv", 12), "big")

        def record(kind, content=b"", padding=0):
            inner = content + bytes([kind]) + bytes(padding)
            header = struct.pack(">BHH", 23, 0x0303, len(inner) + 16)
            nonce = (salt ^ self.sequence).to_bytes(12, "big")
            self.sequence += 1
            return header + seal(nonce, inner, header)
        return record

    def begin_1_2(self, digest, size, said):
        """RFC 5246, 5 and 6.3; RFC 5288, 3. There is no padding."""
        ours, master = [words[1:3] for words in said if words[0] == "CLIENT_RANDOM"][-1]
        theirs = self.heard[11:43]  # behind the headers of a record and of ServerHello, and its version
        seed = step = b"key expansion" + theirs + bytes.fromhex(ours)
        block = b""
        while len(block) < 2 * (size + 4):
            step = hmac.digest(bytes.fromhex(master), step, digest.name)
            block += hmac.digest(bytes.fromhex(master), step + seed, digest.name)
        seal, salt = AESGCM(block[:size]).encrypt, block[2 * size : 2 * size + 4]
        self.sequence = 1  # Finished was 0

        def record(kind, content=b"", _padding=0):
            explicit = self.sequence.to_bytes(8, "big")
            self.sequence += 1
            sealed = explicit + seal(salt + explicit, content, explicit + struct.pack(">BHH", kind, 0x0303, len(content)))
            return struct.pack(">BHH", kind, 0x0303, len(sealed)) + sealed
        return record
