//! One prepared INSERT, bound straight from Avro blocks. sqlx would send every row to its worker
//! thread and allocate every value, at a fiftieth of the speed, so this file talks to the C
//! library on sqlx's own connection.

use std::ffi::{CStr, c_int};
use std::marker::PhantomData;
use std::ptr;

use libsqlite3_sys as ffi;
use sqlx::sqlite::LockedSqliteHandle;
use weirgate_avro::cells::CellSink;

/// An INSERT into which rows of blocks that live for `'b` are bound.
pub(super) struct Statement<'h, 'b> {
    raw: *mut ffi::sqlite3_stmt,
    connection: *mut ffi::sqlite3,
    /// Parameters bound so far in this row.
    bound: c_int,
    /// The first code other than OK of this row's bindings.
    code: c_int,
    /// This row's computed texts and blobs, one after the other, until the row is inserted: SQLite
    /// reads them in place, where its own copies would cost an allocation each.
    computed: Vec<u8>,
    places: Vec<Place>,
    handle: PhantomData<&'h mut ()>,
    block: PhantomData<&'b [u8]>,
}

/// A parameter, and where in `computed` its value lies.
struct Place {
    index: c_int,
    start: usize,
    length: usize,
    text: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("SQLite: {message} (code {code})")]
pub(super) struct StatementError {
    /// Extended result code.
    pub(super) code: c_int,
    pub(super) message: String,
}

impl<'h, 'b> Statement<'h, 'b> {
    pub(super) fn prepare(
        handle: &'h mut LockedSqliteHandle<'_>,
        sql: &str,
    ) -> Result<Self, StatementError> {
        let connection = handle.as_raw_handle().as_ptr();
        let mut raw = ptr::null_mut();
        let length = c_int::try_from(sql.len()).expect("an INSERT is shorter than 2 GiB");
        // SAFETY: the connection is open and ours alone while `handle` is borrowed; `sql` is
        // valid for `length` bytes and need not end in NUL when its length is given.
        let code = unsafe {
            ffi::sqlite3_prepare_v2(
                connection,
                sql.as_ptr().cast(),
                length,
                &mut raw,
                ptr::null_mut(),
            )
        };
        if code != ffi::SQLITE_OK {
            return Err(error(connection));
        }
        Ok(Statement {
            raw,
            connection,
            bound: 0,
            code: ffi::SQLITE_OK,
            computed: Vec::new(),
            places: Vec::new(),
            handle: PhantomData,
            block: PhantomData,
        })
    }

    fn compute(&mut self, value: &[u8], text: bool) {
        self.bound += 1;
        let (start, length) = (self.computed.len(), value.len());
        self.computed.extend_from_slice(value);
        self.places.push(Place { index: self.bound, start, length, text });
    }

    /// Binds what was computed for this row, now that it will not move any more.
    fn bind_computed(&mut self) {
        for Place { index, start, length, text } in self.places.drain(..) {
            let data = self.computed[start..start + length].as_ptr();
            // SAFETY: `raw` is a live statement until drop. The bytes stay until the next row has
            // been begun, and every row binds every parameter before SQLite looks at them again.
            let code = unsafe {
                let (length, static_data) = (length as u64, ffi::SQLITE_STATIC());
                match text {
                    true => {
                        let utf8 = ffi::SQLITE_UTF8 as u8;
                        ffi::sqlite3_bind_text64(
                            self.raw,
                            index,
                            data.cast(),
                            length,
                            static_data,
                            utf8,
                        )
                    }
                    false => {
                        ffi::sqlite3_bind_blob64(self.raw, index, data.cast(), length, static_data)
                    }
                }
            };
            if self.code == ffi::SQLITE_OK {
                self.code = code;
            }
        }
    }

    fn bind(&mut self, bind: impl FnOnce(*mut ffi::sqlite3_stmt, c_int) -> c_int) {
        self.bound += 1;
        let code = bind(self.raw, self.bound);
        if self.code == ffi::SQLITE_OK {
            self.code = code;
        }
    }
}

impl<'b> CellSink<'b> for Statement<'_, 'b> {
    type Error = StatementError;

    fn null(&mut self) {
        // SAFETY: `raw` is a live statement until drop; an index out of range is only an error.
        self.bind(|raw, index| unsafe { ffi::sqlite3_bind_null(raw, index) });
    }

    fn integer(&mut self, value: i64) {
        // SAFETY: as above.
        self.bind(|raw, index| unsafe { ffi::sqlite3_bind_int64(raw, index, value) });
    }

    fn real(&mut self, value: f64) {
        // SAFETY: as above.
        self.bind(|raw, index| unsafe { ffi::sqlite3_bind_double(raw, index, value) });
    }

    fn text(&mut self, text: &'b str) {
        // SAFETY: as above; the text lives for `'b`, hence as long as this statement, so SQLite
        // may read it in place (SQLITE_STATIC).
        self.bind(|raw, index| unsafe {
            let (data, length) = (text.as_ptr().cast(), text.len() as u64);
            let utf8 = ffi::SQLITE_UTF8 as u8;
            ffi::sqlite3_bind_text64(raw, index, data, length, ffi::SQLITE_STATIC(), utf8)
        });
    }

    fn computed_text(&mut self, text: &str) {
        self.compute(text.as_bytes(), true);
    }

    fn blob(&mut self, bytes: &'b [u8]) {
        // SAFETY: as for `text`.
        self.bind(|raw, index| unsafe {
            let (data, length) = (bytes.as_ptr().cast(), bytes.len() as u64);
            ffi::sqlite3_bind_blob64(raw, index, data, length, ffi::SQLITE_STATIC())
        });
    }

    fn computed_blob(&mut self, bytes: &[u8]) {
        self.compute(bytes, false);
    }

    fn end_row(&mut self) -> Result<(), StatementError> {
        self.bind_computed();
        if self.code != ffi::SQLITE_OK {
            return Err(error(self.connection));
        }
        self.bound = 0;
        // SAFETY: `raw` is a live statement, and all it was bound to is still alive.
        let stepped = unsafe { ffi::sqlite3_step(self.raw) };
        if stepped != ffi::SQLITE_DONE {
            return Err(error(self.connection));
        }
        // SAFETY: as above.
        unsafe { ffi::sqlite3_reset(self.raw) };
        self.computed.clear();
        Ok(())
    }

    fn discard_row(&mut self) {
        self.bound = 0;
        self.code = ffi::SQLITE_OK;
        self.places.clear();
        self.computed.clear();
    }
}

impl Drop for Statement<'_, '_> {
    fn drop(&mut self) {
        // SAFETY: `raw` came from prepare and is finalized once, here.
        unsafe { ffi::sqlite3_finalize(self.raw) };
    }
}

fn error(connection: *mut ffi::sqlite3) -> StatementError {
    // SAFETY: the connection is open; the message is valid until its next call, and copied here.
    let (code, message) = unsafe {
        let message = CStr::from_ptr(ffi::sqlite3_errmsg(connection));
        (ffi::sqlite3_extended_errcode(connection), message.to_string_lossy().into_owned())
    };
    StatementError { code, message }
}
