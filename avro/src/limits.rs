/// Bounds on what an untrusted Avro file may ask for.
///
/// The defaults admit every file the common writers produce (their blocks are 16 KiB to a few
/// MiB) and keep a hostile one from costing more than a block's worth of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the container header: schema, codec, other metadata. Hadoop tools put whole job
    /// configurations there, hence more than a schema needs.
    pub header_bytes: usize,
    /// Bytes of schema JSON. Generated schemas of wide event types reach a few hundred KiB.
    pub schema_bytes: usize,
    /// Nesting of the schema's JSON text, in brackets. A record inside a record costs four.
    pub schema_depth: usize,
    /// Branches of one union. Real ones stay below a few dozen; Confluent's "multiple event types
    /// per topic" unions reach hundreds.
    pub union_branches: usize,
    /// Bytes of one compressed block.
    pub block_bytes: usize,
    /// Bytes one block may decompress to: the bound against bombs, and the largest single record.
    pub decompressed_bytes: usize,
    /// Blocks in one file. 2^32 blocks of one row each would take days; no writer does that.
    pub blocks: u64,
    /// Nesting of one value (recursive records, arrays in arrays). Bounds the stack.
    pub value_depth: u32,
    /// Items and rows that take no bytes at all (nulls, empty records) in one block, beyond one
    /// per byte of the block. Such values let a few bytes stand for 2^62 rows.
    pub empty_values: usize,
    /// Bytes of one decimal's unscaled value. Conversion to decimal digits takes quadratic time;
    /// 1 KiB is 2466 digits, of which PostgreSQL lets a column declare 1000.
    pub decimal_bytes: usize,
    /// Bytes of one field of a row. PostgreSQL takes less than 1 GiB per field and 256 MiB in
    /// one jsonb; JSON can be several times the size of the Avro it is made from.
    pub field_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: 16 << 20,
            schema_bytes: 4 << 20,
            schema_depth: 512,
            union_branches: 1024,
            block_bytes: 256 << 20,
            decompressed_bytes: 256 << 20,
            blocks: 1 << 32,
            value_depth: 256,
            empty_values: 1 << 20,
            decimal_bytes: 1 << 10,
            field_bytes: 255 << 20,
        }
    }
}
