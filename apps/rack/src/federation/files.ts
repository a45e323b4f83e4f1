// The files a virtual partition serves: an agent and images that are not there, with true digests, so that every name in a boot script and in a
// job is really served and really checked.
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { architectures } from '@muster/shared/machine'

const systems = [
  { os: 'debian/12', title: 'Debian 12 (virtual)' },
  { os: 'debian/13', title: 'Debian 13 (virtual)' },
  { os: 'ubuntu/24.04', title: 'Ubuntu 24.04 LTS (virtual)' },
] as const

/** Small, so that a rack of thousands installs in memory; large enough to come in several chunks. */
const imageBytes = 256 * 1024

/** Writes the files into `folder` where they are missing. */
export function writeVirtualFiles(folder: string): void {
  for (const arch of architectures) {
    const agent = path.join(folder, 'agent', arch)
    mkdirSync(agent, { recursive: true })
    for (const name of ['vmlinuz', 'initrd']) writeOnce(path.join(agent, name), Buffer.from(`the virtual rack's ${name} for ${arch}\n`))
    for (const { os, title } of systems) {
      const place = path.join(folder, 'images', os, arch)
      mkdirSync(place, { recursive: true })
      const image = Buffer.alloc(imageBytes, `${os} ${arch} `)
      writeOnce(path.join(place, 'root.img'), image)
      const description = { title, file: 'root.img', sha256: createHash('sha256').update(image).digest('hex'), sizeBytes: image.length }
      writeOnce(path.join(place, 'image.json'), Buffer.from(`${JSON.stringify(description, null, 2)}\n`))
    }
  }
}

function writeOnce(file: string, content: Buffer): void {
  if (!existsSync(file)) writeFileSync(file, content)
}
