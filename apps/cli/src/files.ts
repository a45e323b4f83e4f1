// Files that the user names: texts, and public keys.
import { readFile } from 'node:fs/promises'
import { CliError } from './exit-codes.ts'

/** The text of a file that the user named. */
export async function readText(path: string): Promise<string> {
  return (await readBytes(path)).toString('utf8')
}

async function readBytes(path: string): Promise<Buffer> {
  try {
    return await readFile(path)
  } catch (error) {
    throw new CliError('usage', `read ${path}: ${(error as Error).message}`, { cause: error })
  }
}

/** cloud-init's user-data as the contract takes it: text as it is, other bytes (gzip, say) as base64. */
export async function readUserData(path: string): Promise<string> {
  const bytes = await readBytes(path)
  const text = bytes.toString('utf8')
  return Buffer.from(text).equals(bytes) && !text.includes('\0') ? text : bytes.toString('base64')
}

/** The public keys in files, without blank lines and comments. A private key is refused: it would be sent and kept. */
export async function readKeys(paths: readonly string[]): Promise<string[]> {
  const texts = await Promise.all(paths.map(readText))
  return texts.flatMap((text, index) => {
    if (text.includes('PRIVATE KEY')) throw new CliError('usage', `${paths[index]} holds a private key; give the .pub file beside it`)
    return text
      .split('\n')
      .map(line => line.trim())
      .filter(line => line !== '' && !line.startsWith('#'))
  })
}
