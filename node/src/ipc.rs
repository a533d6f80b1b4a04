//! Record batches as pieces of one Arrow IPC stream, small enough for gRPC messages, and back.

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::StreamWriter;

/// The most bytes that one piece has.
const PIECE_BYTES: usize = 1 << 20;

/// Turns batches of one schema into pieces.
pub struct PieceWriter {
    writer: StreamWriter<Vec<u8>>,
}

impl PieceWriter {
    /// A writer; the first pieces that it gives hold the schema.
    pub fn new(schema: &Schema) -> Result<Self, ArrowError> {
        Ok(Self {
            writer: StreamWriter::try_new(Vec::new(), schema)?,
        })
    }

    /// The pieces of `batch`, behind whatever was written before and not taken yet.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<Vec<Vec<u8>>, ArrowError> {
        self.writer.write(batch)?;
        Ok(self.take())
    }

    /// The last pieces: the schema, if there was no batch, and the mark of the end.
    pub fn finish(&mut self) -> Result<Vec<Vec<u8>>, ArrowError> {
        self.writer.finish()?;
        Ok(self.take())
    }

    fn take(&mut self) -> Vec<Vec<u8>> {
        let bytes = std::mem::take(self.writer.get_mut());
        if bytes.len() <= PIECE_BYTES {
            return if bytes.is_empty() { vec![] } else { vec![bytes] };
        }
        bytes.chunks(PIECE_BYTES).map(<[u8]>::to_vec).collect()
    }
}

/// Turns pieces back into batches.
#[derive(Default)]
pub struct PieceReader {
    decoder: StreamDecoder,
}

impl PieceReader {
    /// Takes a piece; gives the batches that it completes.
    pub fn read(&mut self, piece: Vec<u8>) -> Result<Vec<RecordBatch>, ArrowError> {
        let mut buffer = Buffer::from_vec(piece);
        let mut batches = Vec::new();
        while !buffer.is_empty() {
            if let Some(batch) = self.decoder.decode(&mut buffer)? {
                batches.push(batch);
            }
        }
        Ok(batches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, StringArray};
    use std::sync::Arc;

    #[test]
    fn large_and_empty_batches_come_back_whole() {
        let batch = |rows: usize| {
            let column: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(|i| format!("{i:0>64}"))));
            RecordBatch::try_from_iter([("text", column)]).unwrap()
        };
        let batches = [batch(50_000), batch(0), batch(3)];
        let mut writer = PieceWriter::new(&batches[0].schema()).unwrap();
        let mut pieces: Vec<_> = batches.iter().flat_map(|b| writer.write(b).unwrap()).collect();
        pieces.extend(writer.finish().unwrap());
        assert!(pieces.len() > 3 && pieces.iter().all(|p| p.len() <= PIECE_BYTES));
        let mut reader = PieceReader::default();
        let back: Vec<_> = pieces.into_iter().flat_map(|p| reader.read(p).unwrap()).collect();
        assert_eq!(back, batches);
    }
}
