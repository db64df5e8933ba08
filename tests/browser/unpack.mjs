// Unpacks the package's Chromium, and the libraries that a bare machine lacks, into TMPDIR: node unpack.mjs
import { fileURLToPath } from 'node:url';
import path from 'node:path';
import { inflate } from '@sparticuz/chromium';

const bin = path.join(path.dirname(fileURLToPath(import.meta.resolve('@sparticuz/chromium'))), '..', 'bin');
for (const part of ['chromium.br', 'al2023.tar.br', 'fonts.tar.br']) await inflate(path.join(bin, part));
