// First part of `npm start` and `npm test`, on whatever Node the machine has: installs the locked packages (Node 24 among them) when they are
// not there or older than the lock file. Plain JavaScript that Node 18 understands, on purpose. Not a prestart script: those do not run
// under ignore-scripts, which keeps packages from running theirs.
import { spawnSync } from 'node:child_process'
import { existsSync, statSync } from 'node:fs'

const wanted = 24
const stamp = 'node_modules/.package-lock.json'
const isInstalled = existsSync(stamp) && statSync(stamp).mtimeMs >= statSync('package-lock.json').mtimeMs

if (!isInstalled) {
  process.stderr.write('Installing packages (npm ci), once …\n')
  const npm = spawnSync('npm', ['ci', '--ignore-scripts', '--loglevel=error'], {
    stdio: ['ignore', 'ignore', 'inherit'],
    shell: process.platform === 'win32',
  })
  if (npm.status !== 0) {
    process.stderr.write(`npm ci failed (${npm.error?.message ?? `exit ${npm.status}`}). Is the npm registry reachable?\n`)
    process.exit(1)
  }
}

// The `node` that npm scripts will find: the packaged one where the platform has it, else the machine's own.
const probe = spawnSync('node', ['--version'], {
  encoding: 'utf8',
  env: { ...process.env, PATH: `node_modules/.bin:${process.env.PATH}` },
})
const found = probe.stdout?.trim() ?? 'none'
if (Number(found.slice(1).split('.')[0]) < wanted) {
  process.stderr.write(
    `Muster needs Node ${wanted} or newer; found ${found}. ` +
      'On Linux x64 and arm64 it comes with the packages (npm ci must not omit optional dependencies); elsewhere install it first.\n',
  )
  process.exit(1)
}
