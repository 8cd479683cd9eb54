//! An object store that costs nothing: GET `/bucket/FILE/…` answers with FILE of a folder, so that
//! one file serves as many objects. A process of its own, to keep its CPU time out of the figures.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

/// Prints its port, then answers until it is killed.
pub fn serve(folder: &Path) -> ! {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    println!("{}", listener.local_addr().expect("it is bound").port());
    for stream in listener.incoming() {
        let (stream, folder) = (stream.expect("a connection"), folder.to_owned());
        // An end of the connection is no fault of the stub's.
        std::thread::spawn(move || answer(stream, folder));
    }
    unreachable!("a listener never ends")
}

fn answer(stream: TcpStream, folder: PathBuf) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut requests = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let mut request = String::new();
        if requests.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut header = String::new();
        while requests.read_line(&mut header)? > 2 {
            header.clear();
        }
        let name = request.split(['/', '?', ' ']).nth(3).unwrap_or_default();
        let mut file = File::open(folder.join(name))?;
        let size = file.metadata()?.len();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nETag: \"x\"\r\n\r\n")?;
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            stream.write_all(&buffer[..read])?;
        }
    }
}
