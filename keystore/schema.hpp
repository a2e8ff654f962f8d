#pragma once
// The tables of `keys.db`. Only store.cpp includes this.
//
// keys is clustered by digest (WITHOUT ROWID), so that a shard is one run of neighbouring rows, and all of them one ordered scan.
//
// The change log: triggers note every touched digest, whatever process and statement touched it, also the sqlite3 shell.
// `changes` holds for each first 12 digest bits (three hexadecimal digits) the number of the newest change that touched one; so
// it never has more than 4096 rows and needs no pruning, and a reader that comes after any time finds all that it missed.
// `change_counter` has one row and only counts up; a reader that remembers a higher number (a backup was restored) must read all.
// An import switches the triggers off for its connection and notes the digests by itself, once for each 12 bits: they would take
// nearly half of its time. (`importing` once did that for one of them; it stays 0.) The BEFORE triggers are for INSERT OR REPLACE
// and UPDATE OR REPLACE, which remove the row in the way without a DELETE trigger.

#include <array>
#include <cstdint>

namespace latchkey::keystore {

inline constexpr std::int32_t store_application_id = 0x4c4b4b59;  // "LKKY" in the file's header

inline constexpr char const* migration_1 = R"sql(
CREATE TABLE applications (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE CHECK (length(id) BETWEEN 1 AND 64),
    name TEXT NOT NULL CHECK (length(CAST(name AS BLOB)) BETWEEN 1 AND 200),
    created_ms INTEGER NOT NULL,
    disabled_ms INTEGER NOT NULL DEFAULT 0  -- not 0: every key of it is refused
) STRICT;
CREATE INDEX applications_by_name ON applications (name);

CREATE TABLE keys (
    digest BLOB NOT NULL PRIMARY KEY CHECK (length(digest) = 32),
    id TEXT NOT NULL UNIQUE CHECK (length(id) BETWEEN 1 AND 64),
    application INTEGER NOT NULL REFERENCES applications (seq) DEFERRABLE INITIALLY DEFERRED,
    prefix TEXT NOT NULL,
    last4 TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    revoked_ms INTEGER NOT NULL DEFAULT 0,
    expires_ms INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE INDEX keys_by_application ON keys (application);
CREATE INDEX keys_by_creation ON keys (created_ms, id);

CREATE TABLE change_counter (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    number INTEGER NOT NULL,
    importing INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO change_counter VALUES (1, 0, 0);

CREATE TABLE changes (
    prefix TEXT NOT NULL PRIMARY KEY,
    number INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER keys_insert_replaces BEFORE INSERT ON keys WHEN EXISTS (SELECT 1 FROM keys WHERE id = new.id) BEGIN
    UPDATE change_counter SET number = number + 1;
    INSERT INTO changes SELECT substr(hex(k.digest), 1, 3), c.number FROM change_counter c, keys k WHERE k.id = new.id
        ON CONFLICT (prefix) DO UPDATE SET number = excluded.number;
END;
CREATE TRIGGER keys_insert AFTER INSERT ON keys WHEN (SELECT importing FROM change_counter) = 0 BEGIN
    UPDATE change_counter SET number = number + 1;
    INSERT INTO changes SELECT substr(hex(new.digest), 1, 3), number FROM change_counter WHERE true
        ON CONFLICT (prefix) DO UPDATE SET number = excluded.number;
END;
CREATE TRIGGER keys_update_replaces BEFORE UPDATE OF id ON keys WHEN new.id <> old.id BEGIN
    UPDATE change_counter SET number = number + 1;
    INSERT INTO changes SELECT substr(hex(k.digest), 1, 3), c.number FROM change_counter c, keys k WHERE k.id = new.id
        ON CONFLICT (prefix) DO UPDATE SET number = excluded.number;
END;
CREATE TRIGGER keys_update AFTER UPDATE ON keys BEGIN
    UPDATE change_counter SET number = number + 1;
    INSERT INTO changes SELECT substr(hex(old.digest), 1, 3), number FROM change_counter WHERE true
        ON CONFLICT (prefix) DO UPDATE SET number = excluded.number;
    INSERT INTO changes SELECT substr(hex(new.digest), 1, 3), number FROM change_counter WHERE true
        ON CONFLICT (prefix) DO UPDATE SET number = excluded.number;
END;
CREATE TRIGGER keys_delete AFTER DELETE ON keys BEGIN
    UPDATE change_counter SET number = number + 1;
    INSERT INTO changes SELECT substr(hex(old.digest), 1, 3), number FROM change_counter WHERE true
        ON CONFLICT (prefix) DO UPDATE SET number = excluded.number;
END;

CREATE TRIGGER applications_insert_replaces BEFORE INSERT ON applications
WHEN EXISTS (SELECT 1 FROM applications WHERE id = new.id OR seq = new.seq) BEGIN
    UPDATE change_counter SET number = number + 1;
    INSERT INTO changes SELECT DISTINCT substr(hex(k.digest), 1, 3), c.number FROM change_counter c, keys k
        WHERE k.application IN (SELECT seq FROM applications WHERE id = new.id OR seq = new.seq)
        ON CONFLICT (prefix) DO UPDATE SET number = excluded.number;
END;
-- For keys whose application was away (a shell has foreign keys off) and is back.
CREATE TRIGGER applications_insert AFTER INSERT ON applications
WHEN EXISTS (SELECT 1 FROM keys WHERE application = new.seq) BEGIN
    UPDATE change_counter SET number = number + 1;
    INSERT INTO changes SELECT DISTINCT substr(hex(k.digest), 1, 3), c.number FROM change_counter c, keys k
        WHERE k.application = new.seq
        ON CONFLICT (prefix) DO UPDATE SET number = excluded.number;
END;
CREATE TRIGGER applications_update_replaces BEFORE UPDATE OF seq, id ON applications
WHEN new.id <> old.id OR new.seq <> old.seq BEGIN
    UPDATE change_counter SET number = number + 1;
    INSERT INTO changes SELECT DISTINCT substr(hex(k.digest), 1, 3), c.number FROM change_counter c, keys k
        WHERE k.application IN (SELECT seq FROM applications WHERE id = new.id OR seq = new.seq)
        ON CONFLICT (prefix) DO UPDATE SET number = excluded.number;
END;
CREATE TRIGGER applications_update AFTER UPDATE ON applications BEGIN
    UPDATE change_counter SET number = number + 1;
    INSERT INTO changes SELECT DISTINCT substr(hex(k.digest), 1, 3), c.number FROM change_counter c, keys k
        WHERE k.application IN (old.seq, new.seq)
        ON CONFLICT (prefix) DO UPDATE SET number = excluded.number;
END;
CREATE TRIGGER applications_delete AFTER DELETE ON applications BEGIN
    UPDATE change_counter SET number = number + 1;
    INSERT INTO changes SELECT DISTINCT substr(hex(k.digest), 1, 3), c.number FROM change_counter c, keys k
        WHERE k.application = old.seq
        ON CONFLICT (prefix) DO UPDATE SET number = excluded.number;
END;
)sql";

inline constexpr std::array<char const*, 1> migrations{migration_1};

}  // namespace latchkey::keystore
